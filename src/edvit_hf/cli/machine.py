"""`edvit doctor` and `edvit profile`."""

from pathlib import Path
from typing import Annotated

import typer

from edvit_hf.cli.app import Format, FormatOption, app, console, log_console, plain_errors, print_json, start_logging


@app.command()
def doctor(
    offline: Annotated[bool, typer.Option("--offline", help="Do not try to reach the Hub.")] = False,
    output: FormatOption = Format.human,
) -> None:
    """Report versions, cores and threads, known bad pairs of packages and whether the Hub is reachable.

    Exits with 3 when something is broken.
    """
    with plain_errors():
        from edvit_hf.cli.doctor import examine

        report = examine(check_hub=not offline)
        if output is Format.json:
            print_json(report)
        else:
            from edvit_hf.cli.tables import doctor_table

            console.print(doctor_table(report))
        if not report["healthy"]:
            raise typer.Exit(3)


@app.command()
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
    output: FormatOption = Format.human,
) -> None:
    """Measure this machine and write its device profile: what `edvit plan` needs to predict latencies here.

    Needs onnx and onnxruntime, no torch. Run it on the device itself, with nothing else running.
    """
    start_logging(False)
    with plain_errors():
        from edvit_hf.hardware.profiles import profile_dict, save_profile
        from edvit_hf.hardware.profiling import profile_machine
        from edvit_hf.storage import check_writable

        check_writable(file, (".yaml", ".yml"))
        result = profile_machine(
            file.stem if name is None else name, threads=threads, repeats=repeats, quick=quick, watts=watts,
            progress=log_console.is_terminal,
        )  # fmt: skip
        save_profile(result, file)
        if output is Format.json:
            print_json(profile_dict(result))
            return
        figures = f"{result.cores} cores, {result.memory_mib} MiB, {result.sustained_gflops} GFLOP/s, {result.isa}"
        console.print(f"{result.name}: {figures}", markup=False, highlight=False)
        for fitted in (result.provenance or {})["fits"]:
            console.print(
                f"latency on {fitted['threads']} thread(s): {len(fitted['measurements'])} encoders, median error "
                f"{fitted['median_relative_error']:.1%}, on encoders left out of the fit "
                f"{fitted['median_relative_error_left_out']:.1%}",
                markup=False, highlight=False,
            )  # fmt: skip
        console.print(f"profile: {file}", markup=False, soft_wrap=True)
