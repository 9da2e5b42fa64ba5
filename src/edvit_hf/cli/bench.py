"""`edvit bench`."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edvit_hf.cli.app import Format, FormatOption, app, console, log_console, plain_errors, print_json, start_logging

if TYPE_CHECKING:
    from edvit_hf.bench import BenchReport


@app.command()
def bench(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder with an exported ensemble.")],
    sub_model: Annotated[
        list[int] | None,
        typer.Option("--sub-model", help="Time only this sub-model; may be repeated. Default: every exported file."),
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
    output: FormatOption = Format.human,
) -> None:
    """Time every exported file of the ensemble in DIR on this machine: median, p90, spread, load time, memory.

    Files for instruction sets that this machine lacks are left out. Needs onnxruntime, no torch but with --compared.
    Run it on the device itself, with nothing else running.
    """
    start_logging(False)
    with plain_errors():
        from edvit_hf.bench import bench_ensemble, bench_table, save_bench_figure, save_latencies
        from edvit_hf.storage import check_writable, write_json

        for path, suffix in ((result_file, ".json"), (figure, ".png")):
            if path is not None:
                check_writable(path, (suffix,))
        if save:
            for name in ("manifest.json", *(("results.json",) if compared else ())):
                check_writable(folder / name)
        given = f"--threads {threads} --repeats {repeats} --batch {batch} --seed {seed}"
        command = _command(sub_model, precision, given, tokens, compared=compared)
        measure: Callable[..., BenchReport] = bench_ensemble
        keep: list[Callable[[BenchReport, Path], object]] = [save_latencies]
        if compared:
            from edvit_hf.published.compared import bench_compared, save_compared

            measure, keep = bench_compared, [save_latencies, save_compared]
        report = measure(
            folder, sub_models=sub_model, precisions=precision, threads=threads, repeats=repeats, batch=batch,
            tokens=tokens, seed=seed, command=command, progress=log_console.is_terminal,
        )  # fmt: skip
        for write in keep if save else ():
            write(report, folder)
        if result_file is not None:
            write_json(result_file, report.to_json())
        if figure is not None:
            save_bench_figure(report, figure)
        if output is Format.json:
            print_json(report.to_json())
            return
        console.print(bench_table(report))
        if save:
            console.print(f"latencies written: {folder / 'manifest.json'}", markup=False, soft_wrap=True)


def _command(
    sub_models: Sequence[int] | None,
    precisions: Sequence[str] | None,
    given: str,
    tokens: int | None,
    *,
    compared: bool,
) -> str:
    """The command line that reproduces the figures."""
    options = {"--sub-model": sub_models, "--precision": precisions}
    return " ".join(
        ["edvit bench DIR", *(f"{name} {value}" for name, values in options.items() for value in values or ()), given]
        + ([] if tokens is None else [f"--tokens {tokens}"])
        + (["--compared"] if compared else [])
    )
