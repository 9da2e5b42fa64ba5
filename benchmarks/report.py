"""Write the measured tables of README.md and benchmarks/REPORT.md from the results files.

python benchmarks/report.py            write them
python benchmarks/report.py --check    exit with 1 if what is there differs
"""

import argparse
import json
import re
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
BEGIN, END = "<!-- measured: begin -->", "<!-- measured: end -->"
NAMES = {"digits": "digits (8 px, 449 test items)", "mnist_small": "MNIST (28 px, 10,000 test items)"}


def results(name: str) -> dict[str, Any] | None:
    """A results file, or None if nothing was measured yet."""
    path = HERE / "results" / f"{name}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else None


def trip_table(name: str, data: dict[str, Any]) -> list[str]:
    """One recipe: accuracy, difference to the teacher and size of every row."""
    runs, seeds = data["runs"], [run["seed"] for run in data["runs"]]
    lines = [
        f"**{NAMES.get(name, name)}**, {len(seeds)} seed{'s' if len(seeds) > 1 else ''} ({', '.join(map(str, seeds))})",
        "",
        "| | accuracy % | points to the teacher | parameters per device | times smaller | MMACs per device |",
        "|---|---:|---:|---:|---:|---:|",
    ]
    for index, row in enumerate(runs[0]["rows"]):
        values = [run["rows"][index] for run in runs]
        against = [v["against_teacher"] for v in values]
        lines.append(
            f"| {row['name']} | {spread([v['accuracy'] for v in values])} | "
            f"{'' if against[0] is None else differences(against)} | {row['parameters_per_device']:,} | "
            f"{runs[0]['rows'][0]['parameters'] / row['parameters_per_device']:.1f} | "
            f"{row['macs_per_device'] / 1e6:.2f} |"
        )
    absent = [
        spread([run["absent"][k]["accuracy_mean"] for run in runs]) for k in range(min(3, len(runs[0]["absent"])))
    ]
    lines += ["", "Ensemble with 0, 1, 2 sub-models absent: " + ", ".join(f"{a} %" for a in absent) + "."]
    walls = [run["wall_seconds"] for run in runs if run["wall_seconds"] is not None]
    totals = [run["stage_seconds_total"] for run in runs]
    memory = max(run["peak_memory_mib"] for run in runs)
    if walls:
        time = f"{max(walls):.0f} s wall"
    else:
        time = f"{min(totals):.0f} to {max(totals):.0f} s in the stages"
        if any(stage["resumed"] for run in runs for stage in run["stages"].values()):
            time += " (of interrupted and resumed stages the last process alone)"
    machine = runs[0]["environment"]["machine"]
    lines += [
        f"Cost a seed: {time}, at most {memory:.0f} MiB, on {machine['cpu']} with {machine['cores']} cores. "
        f"Command: `{data['command']}`; commit {runs[0]['environment']['commit'][:9]}.",
        "",
    ]
    return lines


def spread(values: list[float]) -> str:
    """Percent; several seeds as mean and range."""
    mean = 100 * sum(values) / len(values)
    return f"{mean:.2f}" if len(values) == 1 else f"{mean:.2f} ({100 * min(values):.2f} to {100 * max(values):.2f})"


def differences(intervals: list[dict[str, float]]) -> str:
    """Points; one seed with its paired 95 % interval, several as mean and range."""
    if len(intervals) == 1:
        one = intervals[0]
        return f"{100 * one['difference']:+.2f} [{100 * one['low']:+.2f}, {100 * one['high']:+.2f}]"
    values = [100 * i["difference"] for i in intervals]
    return f"{sum(values) / len(values):+.2f} ({min(values):+.2f} to {max(values):+.2f})"


def export_line(name: str, data: dict[str, Any]) -> str:
    """Accuracy and parity of the exported variants."""
    exports = [run["export"] for run in data["runs"]]
    variants = ", ".join(
        f"{variant} {spread([e['accuracy'][variant]['accuracy'] for e in exports])} %"
        for variant in exports[0]["accuracy"]
    )
    parity = max(e["parity"]["relative_to_largest_logit"] for e in exports)
    return f"- {name}: {variants}; fp32 against torch at most {parity:.1e} of the largest logit."


def measured() -> str:
    """The block between the markers of the README."""
    lines, exports = [], []
    for name in NAMES:
        data = results(name)
        if data is not None:
            lines += trip_table(name, data)
            exports.append(export_line(name, data))
    lines += ["**Exported ensembles on onnxruntime**", "", *exports, ""]
    lines += dropout_lines() + agreement_lines() + import_lines()
    return "\n".join(lines).rstrip() + "\n"


def dropout_lines() -> list[str]:
    """What sub-model dropout buys."""
    lines = []
    for name in NAMES:
        data = results(f"sub_model_dropout_{name}")
        if data is not None:
            lines += [
                f"- {name}, dropout {dropout}: {100 * m['all_present']:.2f} % with all sub-models present, "
                f"{100 * m['one_absent_mean']:.2f} % on average with one absent"
                for dropout, m in data["mean"].items()
            ]
    return (
        ["**Sub-model dropout in the fusion head** (mean over three seeds of the head)", "", *lines, ""]
        if lines
        else []
    )


def import_lines() -> list[str]:
    """Import and second-run times."""
    lines, imports = [], results("import_time")
    if imports is not None:
        rows = imports["seconds"]
        lines += [
            f"- `import {module}`: {row['median']:.2f} s "
            f"(median of {row['repeats']} fresh processes, {row['min']:.2f} to {row['max']:.2f})"
            for module, row in rows.items()
        ]
    digits = results("digits")
    if digits is not None:
        lines.append(f"- second `edvit run recipes/digits.yaml`: {digits['runs'][0]['second_run_seconds']} s")
    return ["**Start-up**", "", *lines, ""] if lines else []


def agreement_lines() -> list[str]:
    """How well the second-order importance agrees with exact KL."""
    lines = []
    for name in NAMES:
        data = results(f"importance_agreement_{name}")
        if data is not None:
            lines.append(agreement_line(name, data))
    return ["**Importance: second-order approximation against exact KL**", "", *lines, ""] if lines else []


def agreement_line(name: str, data: dict[str, Any]) -> str:
    """One teacher: lowest and median over its class groups."""
    fisher = data["summary"]["fisher"]

    def pair(figure: str) -> str:
        return f"{fisher[figure]['min']:.2f} / {fisher[figure]['median']:.2f}"

    return (
        f"- {name}, `fisher`, {len(data['groups'])} class groups, lowest / median: Kendall tau heads "
        f"{pair('heads_tau_pooled')}, FFN units {pair('ffn_tau_median')}, residual channels {pair('residual_tau')}; "
        f"overlap of the kept residual channels {pair('residual_overlap')}"
    )


def main() -> None:
    """Write or check both files."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--check", action="store_true")
    arguments = parser.parse_args()
    text = README.read_text(encoding="utf-8")
    block = f"{BEGIN}\n{measured()}{END}"
    wanted = re.sub(f"{re.escape(BEGIN)}.*{re.escape(END)}", lambda _: block, text, flags=re.DOTALL)
    report = "# Measured results\n\nGenerated by `python benchmarks/report.py`.\n\n" + measured()
    report_path = HERE / "REPORT.md"
    if arguments.check:
        stale = wanted != text or not report_path.is_file() or report_path.read_text(encoding="utf-8") != report
        sys.exit("README.md or REPORT.md differ from the results files" if stale else 0)
    README.write_text(wanted, encoding="utf-8")
    report_path.write_text(report, encoding="utf-8")


if __name__ == "__main__":
    main()
