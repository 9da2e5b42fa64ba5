"""Options of every command that loads an ensemble to answer with it."""

from enum import StrEnum
from typing import Annotated

import typer

from edvit_hf.cli.app import Precision


class Schedule(StrEnum):
    """How sub-models share the cores."""

    auto = "auto"
    in_turn = "in_turn"
    in_turn_spinning = "in_turn_spinning"
    per_core = "per_core"
    workers = "workers"


EnsembleArgument = Annotated[
    str, typer.Argument(metavar="DIR|REPO", help="A finished ensemble: its folder or its Hub id.")
]
RevisionOption = Annotated[str | None, typer.Option(help="Branch, tag or commit of REPO. Default: main.")]
PrecisionOption = Annotated[Precision, typer.Option(help="Which exported variant.")]
ProfileOption = Annotated[str | None, typer.Option(help="Kind of hardware. Default: this one.")]
SubModelOption = Annotated[
    list[int] | None, typer.Option("--sub-model", help="Load only this one; may be repeated. Default: all.")
]
NumThreadsOption = Annotated[int | None, typer.Option(help="Threads of onnxruntime. Default: as cores.")]
ScheduleOption = Annotated[Schedule, typer.Option(help="How sub-models share the cores; `auto` tries for a second.")]
