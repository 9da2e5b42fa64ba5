# SPDX-License-Identifier: Apache-2.0
"""`edvit simulate`: what a planned fleet would answer under a load, without any device."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from edvit_hf.cli.app import FormatOption, command
from edvit_hf.cli.output import console, print_json
from edvit_hf.terminal import PlainTable, new_table

if TYPE_CHECKING:
    from edvit_hf.planning.fleet import Fleet
    from edvit_hf.planning.plan import Plan
    from edvit_hf.simulation import Simulated


@command()
def simulate(
    target: Annotated[
        str,
        typer.Argument(
            metavar="RECIPE|REPO|DIR",
            help="Recipe file, or the name of a packaged one; or a published ensemble: its folder or its Hub id.",
        ),
    ],
    rate: Annotated[
        list[float], typer.Option(help="Requests a second, at random moments; may be repeated, for a row each.")
    ],
    fleet: Annotated[
        str | None, typer.Option(help="Fleet file, or the name of a packaged one. Default: the recipe's.")
    ] = None,
    objective: Annotated[
        Literal["latency", "spread"] | None, typer.Option(help="As for `edvit plan`. Default: the fleet's.")
    ] = None,
    num_classes: Annotated[
        int | None, typer.Option(max=100_000, help="Number of classes of a RECIPE that does not tell it.")
    ] = None,
    requests: Annotated[int, typer.Option(help="How many are asked, at each rate.")] = 5000,
    coordinators: Annotated[
        int, typer.Option(help="So many copies of the fleet, each with its own coordinator and uplink, asked in turn.")
    ] = 1,
    one_uplink: Annotated[bool, typer.Option("--one-uplink", help="All coordinators send over one uplink.")] = False,
    deadline_ms: Annotated[
        float | None, typer.Option("--deadline-ms", metavar="MS", help="Answer without whoever takes longer.")
    ] = None,
    quorum: Annotated[int | None, typer.Option(help="Fewest sub-models in an answer. Default: half.")] = None,
    in_flight: Annotated[int, typer.Option(help="Requests that a coordinator serves at a time.")] = 1,
    max_queued: Annotated[int, typer.Option(help="Requests that may wait for their turn.")] = 64,
    mean_up_s: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds until a device dies, on average. Default: none dies.")
    ] = None,
    mean_down_s: Annotated[
        float | None, typer.Option(metavar="S", help="Seconds until it is back, on average.")
    ] = None,
    loss: Annotated[float, typer.Option(help="Share of messages that are lost and sent again.")] = 0.0,
    retry_ms: Annotated[float, typer.Option(metavar="MS", help="Until a lost message is sent again.")] = 200.0,
    seed: Annotated[int, typer.Option(help="Of everything that is drawn.")] = 0,
    output: FormatOption = "human",
) -> None:
    """Simulate the planned fleet under a load: answers a second, percentiles, who is missing, energy, and the limit.

    Nothing is measured: times are the plan's, links and watts the fleet file's, limits those of the runtime's
    coordinator. Every device that runs something needs a known speed: `edvit profile` measures it.
    """
    from edvit_hf.runtime.coordinator import CoordinatorConfig
    from edvit_hf.simulation import FleetModel, SimulationConfig
    from edvit_hf.simulation import simulate as simulate_fleet

    serving = CoordinatorConfig(deadline_ms=deadline_ms, quorum=quorum, max_in_flight=in_flight, max_queued=max_queued)
    common: dict[str, Any] = {"requests": requests, "seed": seed, "coordinators": coordinators, "serving": serving}
    common |= {"one_uplink": one_uplink, "mean_up_s": mean_up_s, "mean_down_s": mean_down_s, "loss": loss}
    configs = [SimulationConfig(rate=each, retry_ms=retry_ms, **common) for each in rate]
    plan, devices = _planned(target, fleet, objective, num_classes)
    model = FleetModel.of_plan(plan, devices)
    found = [simulate_fleet(model, config) for config in configs]
    if output == "json":
        print_json({"simulated": True, "runs": [each.to_dict() for each in found]})
        return
    console.print(simulated_table(found))


def _planned(
    target: str, fleet: str | None, objective: Literal["latency", "spread"] | None, num_classes: int | None
) -> "tuple[Plan, Fleet]":
    """The plan, as `edvit plan` makes it, and the fleet it is for."""
    from edvit_hf.planning.fleet import default_fleet, load_fleet
    from edvit_hf.published.plan import is_published, plan_published
    from edvit_hf.recipe.schema import find_fleet

    path: Path | None = None if fleet is None else find_fleet(fleet)
    if is_published(target):
        if num_classes is not None:
            raise typer.BadParameter("--num-classes is for a recipe: a published ensemble knows its classes")
        plan, _ = plan_published(target, path, objective=objective)
        return plan, default_fleet(len(plan.sub_models)) if path is None else load_fleet(path)
    from edvit_hf.recipe import load_recipe
    from edvit_hf.recipe.stages.plan import plan_recipe

    recipe = load_recipe(target)
    plan = plan_recipe(recipe, num_classes=num_classes, fleet=path, objective=objective)
    return plan, recipe.load_fleet() if path is None else load_fleet(path)


def simulated_table(found: "Sequence[Simulated]") -> PlainTable:
    """A row per rate; what gives out first and what was assumed below."""
    first = found[0]
    title = (
        f"simulated, not measured: {first.num_sub_models} sub-models on the fleet {first.fleet}, "
        f"{first.coordinators} coordinator{'s' * (first.coordinators > 1)}, {first.num_devices} devices in all"
    )
    times = (">p50\nms", ">p95\nms", ">p99\nms")
    shares = (">degraded\n%", ">failed\n%", ">rejected\n%")
    busy = tuple(f">busy %\n{name.rpartition(' ')[2]}" for name in first.busy)
    columns = (">asked\n/s", ">answered\n/s", *times, *shares, ">mJ per\nanswer", *busy)
    capacities = ", ".join(f"{name} {_figure(value, ',.2f')}" for name, value in first.capacities_per_s.items())
    caption = [f"gives out first: {first.limit}; requests/s that each could serve alone: {capacities}", *first.notes]
    table = new_table(columns, title=title, caption=caption)
    for each in found:
        table.add_row(
            f"{each.rate:g}",
            f"{each.throughput_per_s:.2f}",
            *(_figure(value, ".1f") for value in (each.p50_ms, each.p95_ms, each.p99_ms)),
            *(f"{100 * value:.2f}" for value in (each.degraded, each.failed, each.rejected)),
            _figure(each.energy_mj_per_answer, ".1f"),
            *(f"{100 * value:.1f}" for value in each.busy.values()),
        )
    return table


def _figure(value: float | None, form: str) -> str:
    return "none" if value is None else format(value, form)
