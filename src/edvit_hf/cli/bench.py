"""`edvit bench`."""

from pathlib import Path
from typing import Annotated

import typer

from edvit_hf.cli.app import (
    Format,
    FormatOption,
    app,
    console,
    log_console,
    plain_errors,
    print_json,
    start_logging,
)


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
    save: Annotated[
        bool, typer.Option("--save", help="Write the figures into DIR/manifest.json, for its card.")
    ] = False,
    result_file: Annotated[
        Path | None, typer.Option("--output", help="Also write everything that was measured into this JSON file.")
    ] = None,
    figure: Annotated[Path | None, typer.Option(help="Also draw the figures into this PNG file.")] = None,
    output: FormatOption = Format.human,
) -> None:
    """Time every exported file of the ensemble in DIR on this machine: median, p90, spread, load time, memory.

    Files for instruction sets that this machine lacks are left out. Needs onnxruntime, no torch. Run it on the device
    itself, with nothing else running.
    """
    start_logging(False)
    with plain_errors():
        from edvit_hf.bench import bench_ensemble, bench_table, save_bench_figure, save_latencies
        from edvit_hf.storage import check_writable, write_json

        for path, suffix in ((result_file, ".json"), (figure, ".png")):
            if path is not None:
                check_writable(path, (suffix,))
        if save:
            check_writable(folder / "manifest.json")
        options = {"--sub-model": sub_model, "--precision": precision}
        command = " ".join(
            ["edvit bench DIR", *(f"{name} {value}" for name, values in options.items() for value in values or ())]
            + [f"--threads {threads} --repeats {repeats} --batch {batch} --seed {seed}"]
            + ([] if tokens is None else [f"--tokens {tokens}"])
        )
        report = bench_ensemble(
            folder, sub_models=sub_model, precisions=precision, threads=threads, repeats=repeats, batch=batch,
            tokens=tokens, seed=seed, command=command, progress=log_console.is_terminal,
        )  # fmt: skip
        if save:
            save_latencies(report, folder)
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
