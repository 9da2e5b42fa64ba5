# SPDX-License-Identifier: Apache-2.0
"""The rivals that a run did not train, and about what each would take: own data do not pay for the evidence unasked."""

from typing import Any

from edvit_hf.card.rows import COPIES, LARGE, REPLICAS
from edvit_hf.evaluation.evaluator import USUAL_RIVALS, Rival
from edvit_hf.recipe.stages.compared import plain_keeps
from edvit_hf.recipe.stages.effort import all_passes, ensemble_effort, fair_budget, num_devices, planned_passes
from edvit_hf.recipe.trip import Trip

ROW_OF: dict[Rival, str] = {"replicas": REPLICAS, "large": LARGE, "copies": COPIES}


def left_out(trip: Trip) -> list[dict[str, Any]]:
    """Each usual rival that the recipe does not ask for: its row's name, how it is asked for, item passes and minutes.

    Minutes are an estimate: the seconds that this run's sub-models took for an item pass, times what a pass of the
    rival costs in multiply-accumulates. None where no log tells.
    """
    wanted = trip.recipe.evaluate.rivals if trip.recipe.evaluate.baselines else ()
    names = [rival for rival in USUAL_RIVALS if rival not in wanted]
    if not names:
        return []
    shape, labels = trip.uncut_shape, trip.teacher.config.num_labels
    keeps = plain_keeps(trip.plan, shape, labels, trip.recipe.evaluate.devices)
    macs = {name: shape.keep(keep, num_labels=labels).macs for name, keep in keeps.items()}
    count, items = num_devices(trip.plan, trip.recipe.evaluate.devices), len(trip.data.train)
    epochs = fair_budget(trip, macs[REPLICAS]).epochs
    shared = max(1, round(all_passes(trip) / count))
    passes = {REPLICAS: epochs * items, LARGE: epochs * items, COPIES: count * shared * items}
    seconds = _seconds_of_a_mac(trip)
    rows = []
    for rival in names:
        row = ROW_OF[rival]
        if (row == LARGE and LARGE not in keeps) or (row == COPIES and count < 2):
            continue  # it would be no other model
        cost = None if seconds is None else passes[row] * macs.get(row, macs[REPLICAS]) * seconds / 60
        minutes = None if cost is None else round(cost, 2)
        rows.append({"name": row, "rival": rival, "passes": passes[row], "minutes": minutes})
    return rows


def _seconds_of_a_mac(trip: Trip) -> float | None:
    """What a multiply-accumulate of a training pass took here; None where no log tells."""
    seconds = ensemble_effort(trip).seconds
    done = sum(passes * part.macs for passes, part in zip(planned_passes(trip), trip.plan.sub_models, strict=True))
    return None if seconds is None or not done else seconds / done
