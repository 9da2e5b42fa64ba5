# SPDX-License-Identifier: Apache-2.0
"""Who knows which class, and how the devices' answers are joined: what the page says of an ensemble's form."""

from collections import Counter

from answers.views import Device
from edvit_hf.manifest import Manifest
from edvit_hf.tasks import FusionKind

_JOINED: dict[FusionKind, str] = {
    "mlp": "A fusion head joins the features that they send.",
    "average": "Their votes are averaged: there is no head to train or to run.",
    "residual": "Their votes are averaged, and a head on their features corrects the average.",
}
REPLICAS = 3
"""Devices that are shown of one model: each holds a replica of it."""
_ALONE = (
    f"This is one model that knows every class, shown on {REPLICAS} devices. Each holds a replica of it and answers by "
    "itself, whoever else is missing: more devices make it safer, not more accurate."
)


def devices_of(manifest: Manifest) -> tuple[Device, ...]:
    """One device for each sub-model, waiting, with the classes that others know too; of one model its replicas."""
    names, known = manifest.label_names, _times_known(manifest)
    if is_replicated(manifest):
        everything = tuple(names[label] for label in manifest.class_groups[0])
        every = frozenset(everything)
        return tuple(Device(index=i, classes=everything, shared=every, state="waiting") for i in range(REPLICAS))
    focus = manifest.focus_groups or [[] for _ in manifest.sub_models]
    return tuple(
        Device(
            index=entry.index,
            classes=tuple(names[label] for label in entry.class_group),
            shared=frozenset(names[label] for label in entry.class_group if known[label] > 1),
            state="waiting",
            focus=tuple(names[label] for label in focus[entry.index]),
        )
        for entry in manifest.sub_models
    )


def is_replicated(manifest: Manifest) -> bool:
    """Whether the ensemble is one model, of which every device holds a replica."""
    return len(manifest.sub_models) == 1


def joining_of(manifest: Manifest) -> str:
    """How the devices' answers are joined, and how many may go missing before a class is known by nobody."""
    count, times, num_labels = len(manifest.sub_models), _times_known(manifest), len(manifest.label_names)
    if is_replicated(manifest):
        return _ALONE
    said = _JOINED[manifest.fusion.kind]
    fewest = min(times.values())
    if fewest == count:
        cut = ", and was cut for those that it names" if manifest.focus_groups else ""
        return f"{said} Each device knows all {num_labels} classes{cut}: any one of them answers alone."
    if fewest > 1:
        missing = "any one of them may go missing" if fewest == 2 else f"any {fewest - 1} of them may go missing"
        return f"{said} Every class is known by at least {fewest} devices, so that {missing} and none is forgotten."
    return said


def _times_known(manifest: Manifest) -> Counter[int]:
    """Class -> how many sub-models vote over it."""
    return Counter(label for group in manifest.class_groups for label in group)
