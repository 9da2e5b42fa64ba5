# SPDX-License-Identifier: Apache-2.0
"""`edvit doctor` and `edvit profile`: what this machine can run, known bad pairs of packages, and how fast it is."""

import importlib.metadata
import os
import socket
import urllib.parse
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edvit_hf.cli.app import FormatOption, command
from edvit_hf.cli.output import console, log_console, print_json, say
from edvit_hf.storage import check_writable

if TYPE_CHECKING:
    from edvit_hf.hardware.profiles import DeviceProfile


@command()
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not try to reach the Hub.")] = False,
    fleet: Annotated[
        bool, typer.Option("--fleet", help="Examine the Ray fleet of --placement instead of this machine.")
    ] = False,
    placement: Annotated[Path | None, typer.Option(help="placement.json of the fleet.")] = None,
    head: Annotated[str, typer.Option(metavar="HOST:PORT", help="Of the fleet. Default: the one here.")] = "auto",
    token_file: Annotated[
        Path | None, typer.Option(help="File with the fleet's token. Or set EDVIT_FLEET_TOKEN.")
    ] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="The fleet has no token.")] = False,
    output: FormatOption = "human",
) -> None:
    """Report versions, cores and threads, known bad pairs of packages and whether the Hub is reachable.

    With --fleet, of each device: versions, clock, free memory, reachability, token, open ports, and its files' hashes.
    Exits with 3 when something is broken.
    """
    if fleet or placement is not None:
        from edvit_hf.cli.fleet import examine_fleet

        examine_fleet(placement, head, token_file, insecure, output)
        return
    report = examine(check_hub=not offline)
    if output == "json":
        print_json(report)
    else:
        from edvit_hf.cli.tables import doctor_table

        console.print(doctor_table(report))
    if not report["healthy"]:
        raise typer.Exit(3)


@command()
def profile(
    file: Annotated[Path, typer.Option("--output", help="Profile file to write, e.g. my_pi5.yaml.")],
    name: Annotated[str | None, typer.Option(help="Name of the profile. Default: the file's name.")] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads of the measurement beside that on one thread. Default: all cores.")
    ] = None,
    repeats: Annotated[int | None, typer.Option(help="Timed runs of every encoder. Default: 15, quick: 7.")] = None,
    watts: Annotated[
        float | None, typer.Option(help="Power while computing, from a meter: what energy budgets need.")
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Seconds instead of a minute; a coarser model.")] = False,
    output: FormatOption = "human",
) -> None:
    """Measure this machine and write its device profile: what `edvit plan` needs to predict latencies here.

    Needs onnx and onnxruntime, no torch. Run it on the device itself, with nothing else running.
    """
    from edvit_hf.hardware.profiles import profile_dict, save_profile
    from edvit_hf.hardware.profiling import profile_machine

    check_writable(file, (".yaml", ".yml"))
    result = profile_machine(
        file.stem if name is None else name,
        threads=threads,
        repeats=repeats,
        quick=quick,
        watts=watts,
        progress=log_console.is_terminal,
    )
    try:
        save_profile(result, file)
    finally:  # what was measured is not lost with a file that cannot be written
        if output == "json":
            print_json(profile_dict(result))
        else:
            _print_profile(result)
    if output == "human":
        say(f"profile: {file}", highlight=True)


def _print_profile(result: "DeviceProfile") -> None:
    figures = f"{result.cores} cores, {result.memory_mib} MiB, {result.sustained_gflops} GFLOP/s, {result.isa}"
    say(f"{result.name}: {figures}")
    for fitted in (result.provenance or {})["fits"]:
        say(
            f"latency on {fitted['threads']} thread(s): {len(fitted['measurements'])} encoders, median error "
            f"{fitted['median_relative_error']:.1%}, on encoders left out of the fit "
            f"{fitted['median_relative_error_left_out']:.1%}"
        )


@dataclass(frozen=True)
class Finding:
    """One line of the report: `ok`, `note` or `bad`, what was seen and what to do."""

    level: Literal["ok", "note", "bad"]
    subject: str
    text: str


def examine(*, check_hub: bool = True, timeout_s: float = 3.0) -> dict[str, Any]:
    """Versions, cores and threads, hardware profile, bad pairs, Hub reachability; JSON-able."""
    from edvit_hf.hardware.machine import detect_profile
    from edvit_hf.hardware.provenance import machine, versions

    findings = [_threads(), *_bad_pairs()]
    if check_hub:
        findings.append(_hub(timeout_s))
    return {
        "machine": machine(),
        "profile": detect_profile(),
        "versions": versions(),
        "findings": [asdict(f) for f in findings],
        "healthy": all(f.level != "bad" for f in findings),
    }


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _threads() -> Finding:
    from edvit_hf.training.threads import usable_physical_cores, use_all_cores

    cores = usable_physical_cores()
    if _installed("torch") is None:
        return Finding("note", "threads", f"{cores} cores; torch is not installed, so nothing trains here")
    threads = use_all_cores()
    if threads < cores:
        setting = {k: os.environ[k] for k in ("OMP_NUM_THREADS", "EDVIT_NUM_THREADS") if k in os.environ}
        return Finding(
            "note",
            "threads",
            f"{threads} of {cores} cores are used ({setting or 'no setting found'}). Training is slower than it could "
            f"be: set EDVIT_NUM_THREADS={cores}.",
        )
    return Finding("ok", "threads", f"{threads} threads on {cores} cores")


def _bad_pairs() -> list[Finding]:
    """Package pairs that break imports; each was seen to fail."""
    torch, torchvision, timm = _installed("torch"), _installed("torchvision"), _installed("timm")
    bad = []
    if torch and "+cpu" in torch and torchvision and "+cpu" not in torchvision:
        text = (
            f"CPU torch {torch} with torchvision {torchvision}: the operator torchvision::nms does not exist, and "
            "Transformers then cannot import its models. Uninstall torchvision: nothing here needs it."
        )
        bad.append(("torch and torchvision", text))
    if timm and not torchvision:
        text = (
            f"timm {timm} needs torchvision to import; an importable-but-broken timm breaks `accelerate launch`. "
            "Uninstall timm: nothing here needs it."
        )
        bad.append(("timm without torchvision", text))
    if _installed("optimum-onnx"):
        text = (
            "optimum-onnx pins transformers below 4.58 and fails on import beside 5.x. Uninstall it: the graphs "
            "come from transformers.exporters."
        )
        bad.append(("optimum-onnx and transformers 5", text))
    return [Finding("bad", *pair) for pair in bad] or [Finding("ok", "packages", "no known bad pair is installed")]


def _hub(timeout_s: float) -> Finding:
    """Whether the Hub endpoint accepts a connection; an offline machine is a note, not a fault."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Finding("note", "Hub", "HF_HUB_OFFLINE is set: only local files and the cache are used")
    parts = urllib.parse.urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=timeout_s):
            return Finding("ok", "Hub", f"{endpoint} is reachable")
    except OSError as error:
        return Finding(
            "note",
            "Hub",
            f"{endpoint} is not reachable ({error}). Hub ids cannot be downloaded; local folders, "
            "EDVIT_DATA_DIR and the cache still work.",
        )
