"""`edvit export`."""

from pathlib import Path
from typing import Annotated, Any, cast

import typer
from rich.table import Table

from edvit_hf.cli.app import (
    Calibration,
    ExportPrecision,
    Format,
    FormatOption,
    VerboseOption,
    app,
    console,
    plain_errors,
    print_json,
    quiet_transformers,
    start_logging,
)


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A finished ensemble folder; it is exported in place.")],
    profile: Annotated[
        list[str] | None,
        typer.Option(help="Kind of hardware that the files are for; may be repeated. Default: this machine's."),
    ] = None,
    fleet: Annotated[Path | None, typer.Option(help="Fleet file: export for every kind of its devices.")] = None,
    precision: Annotated[
        list[ExportPrecision] | None,
        typer.Option(help="What to write besides fp32; may be repeated. Default: what each profile asks for."),
    ] = None,
    calibration: Annotated[
        Calibration, typer.Option(help="How static int8 finds the range of its activations, on training items.")
    ] = Calibration.minmax,
    auto: Annotated[
        bool, typer.Option("--auto", help="Where int8 misses its gate, search for the nodes that must stay float.")
    ] = False,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Write each file a second time with the preprocessing inside.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole/--no-whole", help="Whether to write the whole ensemble as one graph too.")
    ] = True,
    recipe: Annotated[
        str | None,
        typer.Option(help="Recipe that names the dataset. Default: the dataset that DIR/results.json records."),
    ] = None,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 20,
    output: FormatOption = Format.human,
    verbose: VerboseOption = False,
) -> None:
    """Write ONNX files of the ensemble in DIR for the devices that will run it, each checked against torch.

    int8 and fp16 must hold their accuracy on the validation split, overall and in every class group. What other
    hardware's files DIR holds already stays. Nothing half-written is ever loadable: an export that was cut off is
    finished, or done again, by the next.
    """
    start_logging(verbose)
    with plain_errors():
        from edvit_hf.published.export import export_folder, export_report, make_config
        from edvit_hf.recipe import load_recipe

        quiet_transformers()
        config = make_config(
            profiles=profile or [], fleet=fleet,
            precisions=[cast("Any", each.value) for each in precision] if precision else None,
            opset=opset, calibration=calibration.value, auto=auto, with_preprocessing=with_preprocessing, whole=whole,
        )  # fmt: skip
        manifest = export_folder(folder, config, recipe=load_recipe(recipe) if recipe else None)
        report = export_report(folder, manifest)
        if output is Format.json:
            print_json(report)
            return
        for part in export_tables(report):
            console.print(part)
        if (folder / "README.md").is_file():
            console.print("README.md still tells of the files that were there before: `edvit card DIR` renews it.")


def export_tables(report: dict[str, Any]) -> list[Table | str]:
    """What an export left: the sub-models' files by variant, the graphs of the whole, and what was not measured."""
    variants = Table(title=f"{report['id']}: exported files")
    for name, justify, no_wrap in (
        ("variant", "left", True), ("for", "left", False), ("KiB", "right", True),
        ("int8 weights\n/ fp32", "right", True), ("nodes int8\n(float)", "right", True),
        ("difference\n/ largest", "right", True), ("same\n%", "right", True), ("test\n%", "right", True),
        ("net flips\n(allowed)", "right", True), ("worst class\ngroup: flips", "right", True),
    ):  # fmt: skip
        variants.add_column(name, justify=justify, no_wrap=no_wrap, min_width=None if no_wrap else 18)  # type: ignore[arg-type]
    for row in report["variants"]:
        accuracy = row["accuracy"]
        variants.add_row(
            row["name"], " ".join(row["profiles"]) or "any", *_sizes(row),
            "" if accuracy is None else f"{100 * accuracy['accuracy']:.2f}", *_gate(row["gate"]),
        )  # fmt: skip
    for row in report["whole"]:
        name = row["name"] if row["name"] != "fp32" else ""
        variants.add_row(f"whole {name}", " ".join(row["profiles"]) or "any", *_sizes(row), "", "", "")
    parts: list[Table | str] = [variants]
    if report["accuracy_note"]:
        parts.append(f"accuracy: {report['accuracy_note']}")
    gated = [row for row in report["variants"] if row["precision"] != "fp32" and row["inputs"] == "prepared"]
    if names := [row["name"] for row in gated if row["gate"] is None]:
        parts.append(f"passed no gate: {', '.join(names)}")
    return parts


def _sizes(row: dict[str, Any]) -> list[str]:
    is_int8 = row["weight_ratio"] is not None
    return [
        f"{row['bytes'] / 1024:.0f}",
        f"{row['weight_ratio']:.3f}" if is_int8 else "",
        f"{row['num_quantized_nodes']} ({row['kept_float']})" if is_int8 else "",
        f"{row['parity']:.1e}",
        f"{100 * row['argmax_agreement']:.1f}",
    ]


def _gate(gate: dict[str, Any] | None) -> list[str]:
    """Net flips overall and in the class group that lost most, each with how many are allowed."""
    if gate is None:
        return ["", ""]
    index, worst = max(enumerate(gate["groups"]), key=lambda pair: pair[1]["net_flips"] / max(1, pair[1]["num_items"]))
    return [
        f"{gate['net_flips']} ({gate['max_net_flips']})",
        f"{index}: {worst['net_flips']} ({worst['max_net_flips']})",
    ]
