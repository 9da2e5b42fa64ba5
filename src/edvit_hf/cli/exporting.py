# SPDX-License-Identifier: Apache-2.0
"""`edvit export`, `edvit bench` and `edvit card`: what is done to a finished ensemble's folder."""

from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

import typer

from edvit_hf.cli.app import (
    DataDirOption,
    FolderArgument,
    Format,
    FormatOption,
    RecipeOption,
    command,
    index_option,
    quiet_transformers,
)
from edvit_hf.cli.engines import LOCAL, EngineOptions, with_engines
from edvit_hf.cli.output import console, keep_all, log_console, print_json, say
from edvit_hf.errors import EDViTError, need

if TYPE_CHECKING:
    from edvit_hf.bench import BenchReport
    from edvit_hf.fleet.repositories import Server

_NEEDED = ("torch", "transformers", "safetensors", "tqdm", "optimum", "onnx", "onnxscript", "onnxslim")


class ExportPrecision(StrEnum):
    """What an export can write: fp32 always is, `int8` is the dynamic one."""

    fp32 = "fp32"
    fp16 = "fp16"
    int8 = "int8"
    int8_static = "int8_static"


_Server = Annotated[
    Literal["triton", "kserve"] | None,
    typer.Option(help="Instead of exporting, write each device's model repository and configuration for this server."),
]
_Placement = Annotated[Path | None, typer.Option(help="With --server: the placement.json of `edvit plan`.")]
_ServerOutput = Annotated[
    Path | None, typer.Option(help="With --server: folder to write. Default: DIR-triton or DIR-kserve.")
]


@command()
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
        Literal["minmax", "entropy", "percentile"],
        typer.Option(help="How static int8 finds the range of its activations, on training items."),
    ] = "minmax",
    auto: Annotated[
        bool, typer.Option("--auto", help="Where int8 misses its gate, search for the nodes that must stay float.")
    ] = False,
    with_preprocessing: Annotated[
        bool, typer.Option("--with-preprocessing", help="Write each file a second time with the preprocessing inside.")
    ] = False,
    whole: Annotated[
        bool, typer.Option("--whole/--no-whole", help="Whether to write the whole ensemble as one graph too.")
    ] = True,
    recipe: RecipeOption = None,
    data_dir: DataDirOption = None,
    without_accuracy_gate: Annotated[
        bool,
        typer.Option(
            "--without-accuracy-gate",
            help="Write int8 and fp16 although nothing says how much accuracy they lose; manifest and card say so.",
        ),
    ] = False,
    opset: Annotated[int, typer.Option(help="ONNX operator set.")] = 20,
    server: _Server = None,
    placement: _Placement = None,
    server_output: _ServerOutput = None,
    output: FormatOption = "human",
) -> None:
    """Write ONNX files of the ensemble in DIR for the devices that will run it, each checked against torch.

    int8 and fp16 must hold their accuracy on the validation split, overall and in every class group; without its data
    they are refused. What other hardware's files DIR holds already stays. Nothing half-written is ever loadable: an
    export that was cut off is finished, or done again, by the next. With --server nothing is exported: what DIR holds
    is laid out for other servers, without torch.
    """
    if server is not None or placement is not None or server_output is not None:
        _lay_out(folder, server, placement, server_output)
        return
    need("Exporting", "train,export", *_NEEDED)
    from edvit_hf.published.export import export_folder, export_report, make_config
    from edvit_hf.recipe import load_data_recipe

    quiet_transformers()
    config = make_config(
        profiles=profile or [],
        fleet=fleet,
        precisions=[cast("Any", each.value) for each in precision] if precision else None,
        opset=opset,
        calibration=calibration,
        auto=auto,
        with_preprocessing=with_preprocessing,
        whole=whole,
    )
    data: dict[str, Any] = {"recipe": load_data_recipe(recipe) if recipe else None, "data_dir": data_dir}
    manifest = export_folder(folder, config, **data, without_accuracy_gate=without_accuracy_gate)
    _print_export(folder, export_report(folder, manifest), output)


def _print_export(folder: Path, report: dict[str, Any], output: Format) -> None:
    from edvit_hf.cli.tables import export_tables

    if output == "json":
        print_json(report)
        return
    for part in export_tables(report):
        console.print(part)
    if (folder / "README.md").is_file():
        console.print("README.md still tells of the files that were there before: `edvit card DIR` renews it.")


def _lay_out(folder: Path, server: "Server | None", placement: Path | None, output: Path | None) -> None:
    """Write what other servers read, for each device of a placement."""
    from edvit_hf.fleet.repositories import write_repositories

    if server is None or placement is None:
        raise EDViTError(
            "Expected --server and --placement together, got one without the other. What goes to which device, or in "
            "what form, is unknown. Make a placement with: edvit plan DIR --fleet FLEET"
        )
    target = folder.with_name(f"{folder.resolve().name}-{server}") if output is None else output
    for path in write_repositories(folder, placement, server, target):
        say(f"written: {path}", highlight=True)


@command()
@with_engines
def bench(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with an exported ensemble.")],
    sub_model: Annotated[
        list[int] | None, index_option("--sub-model", text="Time only these sub-models. Default: every exported file.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="Time only `fp32`, `fp16` or `int8`; may be repeated. Default: all.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads of onnxruntime.")] = 1,
    repeats: Annotated[int, typer.Option(help="Fresh processes per file, in shuffled order.")] = 5,
    batch: Annotated[int, typer.Option(help="Inputs per call.")] = 1,
    tokens: Annotated[
        int | None, typer.Option(help="Length of a text. Default: as long as the model reads, at most 128.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Of the order and the made-up inputs.")] = 0,
    compared: Annotated[
        bool, typer.Option("--compared", help="Also time graphs of the teacher's and the plain models' sizes.")
    ] = False,
    save: Annotated[
        bool, typer.Option("--save", help="Write the figures into DIR/manifest.json and results.json, for its card.")
    ] = False,
    result_file: Annotated[
        Path | None, typer.Option("--output", help="Also write everything that was measured into this JSON file.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the figures into this PNG file.")] = None,
    engines: EngineOptions = LOCAL,
    output: FormatOption = "human",
) -> None:
    """Time every exported file of the ensemble in DIR on this machine: median, p90, spread, load time, memory.

    Files for instruction sets that this machine lacks are left out. Needs onnxruntime, no torch but with --compared.
    Run it on the device itself, with nothing else running. With --workers whole answers of the devices are timed.
    """
    if engines.name != "local":
        _bench_engine(folder, engines, output)
        return
    from edvit_hf.bench import bench_ensemble, bench_table, save_bench_figure, save_latencies
    from edvit_hf.storage import write_json

    _check_written(folder, result_file, figure, ("manifest.json", *["results.json"] * compared) if save else ())
    timing = {"threads": threads, "repeats": repeats, "batch": batch, "seed": seed, "tokens": tokens}
    measure: Callable[..., BenchReport] = bench_ensemble
    keep: list[Callable[[BenchReport, Path], object]] = [save_latencies]
    if compared:
        from edvit_hf.published.compared import bench_compared, save_compared

        measure, keep = bench_compared, [save_latencies, save_compared]
    report = measure(
        folder,
        sub_models=sub_model,
        precisions=precision,
        command=_command(sub_model, precision, timing, compared=compared),
        progress=log_console.is_terminal,
        **timing,
    )
    writes: list[Callable[[], object]] = [partial(write, report, folder) for write in keep if save]
    if result_file is not None:
        writes.append(partial(write_json, result_file, report.to_json()))
    if figure is not None:
        writes.append(partial(save_bench_figure, report, figure))
    try:
        keep_all(*writes)
    finally:  # what was measured is not lost with a file that cannot be written
        print_json(report.to_json()) if output == "json" else console.print(bench_table(report))
    if save and output == "human":
        say(f"latencies written: {folder / 'manifest.json'}", highlight=True)


def _command(
    sub_models: list[int] | None, precisions: list[str] | None, timing: Mapping[str, int | None], *, compared: bool
) -> str:
    """The command line that reproduces the figures."""
    chosen = [
        *(("sub-model", index) for index in sub_models or ()),
        *(("precision", name) for name in precisions or ()),
    ]
    given = [f"--{name} {value}" for name, value in [*chosen, *timing.items()] if value is not None]
    return " ".join(["edvit bench DIR", *given, *(["--compared"] if compared else [])])


def _check_written(folder: Path, result_file: Path | None, figure: Path | None, names: Sequence[str]) -> None:
    """Refuse what cannot be written before the minutes that measuring takes, not after."""
    from edvit_hf.bench import check_drawing
    from edvit_hf.storage import check_writable

    for path, suffix in ((result_file, ".json"), (figure, ".png")):
        if path is not None:
            check_writable(path, (suffix,))
    if figure is not None:
        check_drawing()
    for name in names:
        check_writable(folder / name)


def _bench_engine(folder: Path, engines: EngineOptions, output: Format) -> None:
    """Time whole answers through the devices, network and all."""
    from edvit_hf.fleet.timing import time_answers
    from edvit_hf.runtime import EDViTRuntime

    with EDViTRuntime.from_pretrained(folder, engine=engines.make()) as runtime:
        report = time_answers(runtime)
    if output == "json":
        print_json(report)
        return
    for line in report_lines(report):
        say(line)


def report_lines(report: Mapping[str, Any]) -> list[str]:
    """What `time_answers` found, for people."""
    total, ratio = report["answer_ms"], report["over_slowest"]
    lines = [
        f"{report['requests']} answers through {report['engine']}: median {total['median']:.1f} ms, 95th percentile "
        f"{total['p95']:.1f} ms, {ratio:.2f} times the slowest sub-model"
    ]
    for index, each in report["sub_models"].items():
        took = "never answered" if each["compute_ms"] is None else f"computes {each['compute_ms']:.1f} ms"
        lines.append(f"sub-model {index}: {took}, missing from {each['missing']} answers")
    return lines


@command()
def card(
    folder: FolderArgument,
    repo_id: Annotated[
        str | None, typer.Option(help="OWNER/NAME it will be pushed to: the card's code then loads from there.")
    ] = None,
) -> None:
    """Render README.md and its figures in DIR again, after `edvit export` or `edvit bench --save` changed the figures.

    Everything comes from DIR/results.json and DIR/manifest.json; nothing is measured.
    """
    from edvit_hf.card.render import CardData, write_card

    given = {} if repo_id is None else {"repo_id": repo_id}
    path = write_card(folder, CardData.from_folder(folder, **given))
    say(f"card: {path}")
