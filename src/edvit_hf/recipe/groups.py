# SPDX-License-Identifier: Apache-2.0
"""Class groups from a recipe, and the figures of its fleet that they may follow. Light: no torch."""

from edvit_hf import splitting
from edvit_hf.errors import RecipeError
from edvit_hf.planning.fleet import load_fleet
from edvit_hf.recipe.schema import Recipe


def groups_before_training(recipe: Recipe, num_classes: int) -> tuple[list[list[int]], str | None]:
    """The class groups as far as sizes alone tell them, and a note where they only stand in for others.

    Raises:
        RecipeError: The recipe's split is impossible.
    """
    return splitting.placeholder_groups(num_classes, recipe.split, capability=capability(recipe))


def capability(recipe: Recipe) -> list[float] | None:
    """What each sub-model's device can do, for `split.sizes: proportional`; None for equal sizes.

    Sub-model i is meant for device i of the fleet, in turn where there are more sub-models than devices (they then
    share it); the planner has the last word. The figure is the sustained speed of the device's profile.

    Raises:
        RecipeError: A device whose profile states no speed.
    """
    split = recipe.split
    if split.sizes != "proportional":
        return None
    devices = load_fleet(recipe.fleet_path).devices
    chosen = [devices[i % len(devices)] for i in range(split.num_sub_models)]
    speeds = [device.hardware.sustained_gflops for device in chosen]
    for device, speed in zip(chosen, speeds, strict=True):
        if speed is None:
            raise RecipeError(
                f"`split.sizes: proportional` follows the speed of the devices, but the profile {device.profile!r} of "
                f"device {device.name!r} states none. Its share of the classes would be a guess. Measure it with "
                "`edvit profile`, name another profile, or use `sizes: equal`."
            )
    shared = [sum(other.name == device.name for other in chosen) for device in chosen]
    return [float(speed or 0) / count for speed, count in zip(speeds, shared, strict=True)]
