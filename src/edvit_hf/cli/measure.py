# SPDX-License-Identifier: Apache-2.0
"""`edvit evaluate` and `edvit predict`: measure an exported ensemble, and ask it for one answer."""

import io
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from edvit_hf.cli.app import (
    AbsentOption,
    DataDirOption,
    EnsembleArgument,
    FormatOption,
    HeldPrecisionOption,
    NumThreadsOption,
    PrecisionOption,
    ProfileOption,
    RecipeOption,
    RevisionOption,
    ScheduleOption,
    SubModelOption,
    command,
)
from edvit_hf.cli.engines import LOCAL, EngineOptions, local_options, with_engines
from edvit_hf.cli.output import console, print_json, say
from edvit_hf.errors import DataError

# Of standard input, which may never end: what a device with 1 GB of memory can hold beside the ensemble; 25 minutes of
# stereo sound as a CD has it.
_MOST_INPUT_BYTES = 2**28


@command()
@with_engines
def evaluate(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A published or finished ensemble folder.")],
    recipe: RecipeOption = None,
    data_dir: DataDirOption = None,
    precision: PrecisionOption = "fp32",
    max_items: Annotated[int | None, typer.Option(help="Use only the first items of the test split.")] = None,
    save: Annotated[
        bool, typer.Option("--save", help="Measure every variant and record it in DIR/results.json, for `edvit card`.")
    ] = False,
    engines: EngineOptions = LOCAL,
    output: FormatOption = "human",
) -> None:
    """Measure the exported ensemble in DIR on its test split: accuracy and F1, whole and with sub-models absent.

    The runtime answers, as on a device, and the ensemble's own processor prepares the inputs. With --save all variants
    and the whole split, whatever --precision says; figures of other data than DIR's results are of are recorded apart.
    Ends with what to deploy, from the rivals that were measured when the ensemble was made.
    """
    from edvit_hf.cli.tables import absent_table, evaluation_table
    from edvit_hf.published import measure_exported, save_measured
    from edvit_hf.published.data import missing_verdict, recorded_verdict
    from edvit_hf.recipe import load_data_recipe

    if save and max_items is not None:
        raise DataError(
            f"Expected the whole test split with --save, got --max-items {max_items}. A card would show "
            "figures of a part as if they were of all. Leave one of the two out."
        )
    if save and engines.name != "local":
        raise DataError(
            "Expected the files of DIR themselves with --save, got devices that run some. A card shows every file's "
            "figures. Leave one of the two out."
        )
    values = load_data_recipe(recipe) if recipe else None
    if save:
        result = save_measured(folder, values, data_dir=data_dir)
    else:
        chosen: dict[str, Any] = {"precision": precision, "max_items": max_items, "data_dir": data_dir}
        result = measure_exported(folder, values, **chosen, engine=engines.make())
    if output == "json":
        print_json(result)
        return
    say(measured_on(result, max_items))
    if not save:
        console.print(evaluation_table(result))
    console.print(absent_table(result["variants"] if save else {result["variant"]: result}))
    say(recorded_verdict(folder) or missing_verdict(folder))


@command()
@with_engines
def predict(
    ensemble: EnsembleArgument,
    source: Annotated[
        str, typer.Argument(metavar="INPUT", help="An image or sound file, or the text itself; `-`: standard input.")
    ],
    absent: AbsentOption = None,
    precision: HeldPrecisionOption = None,
    profile: ProfileOption = None,
    sub_model: SubModelOption = None,
    num_threads: NumThreadsOption = None,
    schedule: ScheduleOption = "in_turn",  # one answer is not worth a second of trying which is quickest
    deadline_ms: Annotated[
        float | None,
        typer.Option(
            "--deadline-ms",
            "--deadline",
            metavar="MS",
            help="Answer without sub-models that take longer, decoding not counted. Default: wait for all.",
        ),
    ] = None,
    revision: RevisionOption = None,
    engines: EngineOptions = LOCAL,
    output: FormatOption = "human",
) -> None:
    """Classify INPUT: class, probability, each sub-model's vote, who is missing, and what changes when one is absent.

    Needs no torch: this is what a device runs. With --workers the devices run the sub-models.
    """
    from edvit_hf.cli.tables import prediction_report, prediction_tables
    from edvit_hf.runtime import EDViTRuntime

    chosen: dict[str, Any] = {
        "revision": revision,
        "precision": precision,
        "sub_models": sub_model,
        "num_threads": num_threads,
    }
    chosen |= {"profile": profile, "schedule": schedule, "deadline_ms": deadline_ms}
    runtime = EDViTRuntime.from_pretrained(ensemble, **local_options(engines, chosen), engine=engines.make())
    with runtime:
        item = _read_input(source, is_text=runtime.task == "text-classification")
        report = prediction_report(runtime, item, absent=tuple(absent or ()))
    if output == "json":
        print_json(report)
        return
    for table in prediction_tables(report):
        console.print(table)


def measured_on(result: Mapping[str, Any], max_items: int | None = None) -> str:
    """One line on what was measured on, and whether the ensemble's results are of the same items."""
    from edvit_hf.card.other_data import described

    part = "" if max_items is None else f", the first {max_items:,} of them"
    other = "" if result["is_own_data"] else "; other data than the results in DIR are of"
    return f"measured on {described(result['dataset'])}{part}{other}"


def _read_input(source: str, *, is_text: bool) -> str | bytes | Path:
    """What the ensemble is asked about: a file's path, the bytes of one on standard input, or a text.

    Raises:
        DataError: If a text ensemble is given the name of a file, whose name would be classified, or if standard input
            is closed or does not end.
    """
    if source == "-":
        content = _read_standard_input()
        return content.decode("utf-8", errors="replace") if is_text else content
    if not is_text:
        return Path(source)
    if os.path.exists(source):  # noqa: PTH110  (which does not mind a text longer than any name)
        raise DataError(
            f"Expected a text, got {source!r}, which is a file or folder here. Its name would be classified, not what "
            f"it says. Give a text on standard input: edvit predict DIR - < FILE"
        )
    return source


def _read_standard_input() -> bytes:
    if sys.stdin is None:
        raise DataError(
            "Expected an input on standard input, got none: it is closed. There is nothing to classify. Give one: "
            "edvit predict DIR - < FILE"
        )
    content = io.BytesIO()  # grows in place, and hands out what it holds: no second copy
    while content.tell() <= _MOST_INPUT_BYTES and (part := sys.stdin.buffer.read(2**20)):
        content.write(part)
    if content.tell() > _MOST_INPUT_BYTES:
        raise DataError(
            f"Expected at most {_MOST_INPUT_BYTES} bytes on standard input, got more. Memory would run out. Give one "
            "image, sound or text."
        )
    return content.getvalue()
