# SPDX-License-Identifier: Apache-2.0
"""Says where the figures of a card come from: command, seed, commit, machine and date of each."""

from collections.abc import Mapping, Sequence
from typing import Any

from edvit_hf.card.exports import accuracy_by_name, latency_protocols, runtime_variants
from edvit_hf.card.markup import NOT_MEASURED, NOT_RECORDED, code, markdown_table, plain, text_or_not
from edvit_hf.manifest import Manifest

_COMMIT_DIGITS = 12


def source_line(results: Mapping[str, Any]) -> str:
    """One sentence under a table: what measured it."""
    environment = results.get("environment") or {}
    command = results.get("command")
    return (
        f"Measured by {code(command) if command else 'a command that was not recorded'}: seed "
        f"{_recorded(results.get('seed'))}, commit {_short_commit(environment.get('commit'))}, "
        f"{_machine_text(environment.get('machine'), brief=True)}, {_recorded(environment.get('date'))}."
    )


def figure_source(results: Mapping[str, Any]) -> str:
    """What measured the results, short enough to stand inside a figure; empty where the run recorded no command."""
    environment, command = results.get("environment") or {}, results.get("command")
    if not command:
        return ""
    commit = _short_commit(environment.get("commit")).strip("`")
    return f"{command}  |  seed {_recorded(results.get('seed'))}  |  commit {commit}"


def sources_table(results: Mapping[str, Any], manifest: Manifest | None) -> str:
    """What measured each kind of figure: one line per source."""
    header = ["figures", "command", "seed", "commit", "machine", "date"]
    environment = results.get("environment") or {}
    command = code(results["command"]) if results.get("command") else NOT_RECORDED
    seed = _recorded(results.get("seed"))
    what = "accuracies, sizes, absences, class groups, and the figures drawn of them"
    run = [what, command, seed, *_where(environment)]
    exports = _export_lines(results, manifest, command, seed)
    return markdown_table(header, [run, *exports, *_runtime_lines(results, manifest), *_latency_lines(manifest)])


def _export_lines(results: Mapping[str, Any], manifest: Manifest | None, command: str, seed: str) -> list[list[str]]:
    """The exported files' parity and accuracy: what the export wrote of itself, else the export stage of the run.

    Files of several exports may lie side by side: one line each.
    """
    what = "exported files: parity, accuracy, gates"
    stage: Mapping[str, Any] = next((s for s in results.get("stages") or [] if s.get("name") == "export"), {})
    lines: dict[tuple[str, ...], list[str]] = {}
    for name, row in accuracy_by_name(manifest).items():
        environment = row.get("environment") or stage
        machine = _machine_text(environment.get("machine"))
        if machine == NOT_RECORDED and row.get("measured_on"):
            machine = f"hardware of kind {code(row['measured_on'])}"
        own = code(row["command"]) if row.get("command") else f"{command}, stage `export`" if stage else NOT_RECORDED
        source = (own, seed, _short_commit(environment.get("commit")), machine, _recorded(environment.get("date")))
        lines.setdefault(source, []).append(code(name))
    if not lines and manifest and stage:
        lines[f"{command}, stage `export`", seed, _short_commit(stage.get("commit")), NOT_RECORDED, NOT_RECORDED] = []
    if not lines:
        return [[what, *[NOT_MEASURED] * 5]]
    only = len(lines) == 1
    return [[what if only else f"{what} of {', '.join(names)}", *source] for source, names in lines.items()]


def _runtime_lines(results: Mapping[str, Any], manifest: Manifest | None) -> list[list[str]]:
    """The runtime's answers with sub-models absent; no line where there are none: then torch's stand in the card."""
    names = runtime_variants(results, manifest)
    if not names:
        return []
    record = results["runtime"]
    command = code(record["command"]) if record.get("command") else NOT_RECORDED
    where = _where(record.get("environment") or {})
    return [["answers of the runtime, absences by variant", command, "none", *where]]


def _latency_lines(manifest: Manifest | None) -> list[list[str]]:
    """One line per way in which latencies were measured."""
    lines = []
    for protocol in latency_protocols(manifest):
        command = code(protocol["command"]) if protocol.get("command") else NOT_RECORDED
        where = _where(protocol.get("environment") or protocol)
        lines.append(["latency" + _protocol_words(protocol), command, _recorded(protocol.get("seed")), *where])
    return lines or [["latency", *[NOT_MEASURED] * 5]]


def _where(environment: Mapping[str, Any]) -> list[str]:
    """Commit, machine and date; an older record may name its machine in words."""
    machine = environment.get("machine")
    named = _machine_text(machine) if isinstance(machine, Mapping) else _recorded(machine)
    return [_short_commit(environment.get("commit")), named, _recorded(environment.get("date"))]


def _protocol_words(protocol: Mapping[str, Any]) -> str:
    """How a latency was measured: " (batch 1, 1 thread, 5 fresh processes)"."""
    forms = {"batch": "batch {}", "threads": "{} thread{}", "repeats": "{} fresh process{}", "profile": "{}"}
    words = []
    for key, form in forms.items():
        if (value := protocol.get(key)) is not None:
            plural = "" if value == 1 else "es" if "process" in form else "s"
            words.append(plain(form.format(value, plural)))
    return f" ({', '.join(words)})" if words else ""


def stage_table(results: Mapping[str, Any]) -> str:
    """What each stage of the run took, and the commit it ran at."""
    lines = [
        [
            plain(stage["name"]),
            text_or_not(stage.get("seconds"), "{:.0f} s"),
            text_or_not(stage.get("peak_memory_mib"), "{:.0f} MiB"),
            _short_commit(stage.get("commit")),
        ]
        for stage in results.get("stages") or []
    ]
    return markdown_table(["stage", "time", "peak memory", "commit"], lines)


def versions_line(results: Mapping[str, Any]) -> str:
    """Seeds of the stages and versions of what ran, as one sentence each."""
    environment = results.get("environment") or {}
    seeds = ", ".join(plain(f"{stage} {seed}") for stage, seed in (results.get("seeds") or {}).items())
    versions = ", ".join(plain(f"{name} {v}") for name, v in (environment.get("versions") or {}).items() if v)
    return f"Seeds: {seeds or NOT_RECORDED}. Versions: {versions or NOT_RECORDED}."


def _short_commit(commit: object) -> str:
    """The first digits of a commit, and whether files differed from it; in code style."""
    if not commit:
        return NOT_RECORDED
    digits, _, changes = str(commit).partition("+")
    return code(f"{digits[:_COMMIT_DIGITS]}{'+' + changes if changes else ''}")


def _machine_text(machine: Mapping[str, Any] | None, *, brief: bool = False) -> str:
    """Processor, cores and, unless brief, memory."""
    if not machine:
        return NOT_RECORDED
    forms: Sequence[tuple[str, str]] = (("cpu", "{}"), ("cores", "{} cores"), ("memory_gib", "{} GiB memory"))
    parts = [plain(form.format(machine[key])) for key, form in forms if machine.get(key) is not None]
    return ", ".join(parts[: 2 if brief else 3]) or NOT_RECORDED


def _recorded(value: object) -> str:
    return NOT_RECORDED if value is None else plain(value)
