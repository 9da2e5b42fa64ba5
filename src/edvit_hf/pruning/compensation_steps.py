# SPDX-License-Identifier: Apache-2.0
"""The steps of a compensation, found by watching a forward, and what a forward shows at them.

Shape letters as in `compensation`.
"""

import copy
from collections.abc import Callable, Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from edvit_hf.architectures.axes import Architecture
from edvit_hf.pruning.models import Inputs

Probe = tuple[str, bool]  # a module, and whether its input is read (else its output)


@dataclass(frozen=True)
class Step:
    """Linears that read the same input, fitted together, in the order of the forward."""

    names: tuple[str, ...]  # their paths, the same in the pruned model and the teacher
    # Where the fit looks: at their outputs, or at the residual stream that the only one writes into.
    probes: tuple[Probe, ...]
    num_inputs: int  # I
    num_outputs: int  # O, of all of them
    per_token: bool  # whether their input is (B, T, I); else (B, I)


def trace(model: PreTrainedModel, architecture: Architecture, inputs: Inputs) -> tuple[list[Step], int]:
    """The steps in the order of the forward, and T. In float32 at least: half precision hides what is added to what."""
    if model.dtype in (torch.float16, torch.bfloat16):
        model = copy.deepcopy(model).float()
        inputs = {name: value.float() if value.is_floating_point() else value for name, value in inputs.items()}
    modules = {n: m for n, m in model.named_modules() if isinstance(m, nn.Linear | nn.LayerNorm)}
    events: list[tuple[str, Tensor]] = []  # holding the inputs keeps `is` below meaningful

    def see(name: str, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        events.append((name, args[0]))

    with ExitStack() as stack:
        for name, module in modules.items():
            stack.callback(module.register_forward_pre_hook(partial(see, name)).remove)
        model(**inputs)
    is_linear = {name: isinstance(module, nn.Linear) for name, module in modules.items()}

    def is_same_step(i: int) -> bool:
        return i > 0 and is_linear[events[i - 1][0]] and events[i - 1][1] is events[i][1]

    starts = [i for i, (name, _) in enumerate(events) if is_linear[name] and not is_same_step(i)]
    steps = []
    for start, end in pairwise([*starts, len(events)]):
        names = tuple(name for name, _ in events[start:end] if is_linear[name])
        probes: tuple[Probe, ...] = tuple((name, False) for name in names)
        norm = next((name for name, _ in events[start:end] if not is_linear[name]), None)
        (axis, _), _layer = architecture.locate(f"{names[0]}.weight")
        if axis == "residual" and norm is not None and _is_added(model, inputs, names[0], norm):
            probes = ((norm, True),)
        linears = [model.get_submodule(name) for name in names]
        value = events[start][1]
        steps.append(Step(names, probes, value.shape[-1], sum(m.out_features for m in linears), value.ndim == 3))
    return steps, next(value.shape[1] for _, value in events if value.ndim == 3)


def _is_added(model: PreTrainedModel, inputs: Inputs, name: str, norm: str) -> bool:
    """Whether the output of Linear `name` arrives in the input of `norm` as a plain summand (no layer scale)."""
    before = values_at(model, inputs, {(norm, True): _as_it_is})[norm, True]
    handle = model.get_submodule(name).register_forward_hook(lambda _module, _args, output: output + 1)
    try:
        after = values_at(model, inputs, {(norm, True): _as_it_is})[norm, True]
    finally:
        handle.remove()
    return before.shape == after.shape and bool(((after - before - 1).abs() <= 1e-2 + 1e-6 * before.abs()).all())


class _AllSeen(Exception):  # noqa: N818 - ends a forward, no error
    """Ends a forward once every probe has its value."""


def values_at(
    model: PreTrainedModel, inputs: Inputs, probes: Mapping[Probe, Callable[[Tensor], Tensor]]
) -> dict[Probe, Tensor]:
    """What one forward shows at the probes; it ends with the last of them.

    `probes` says what to keep of the value there, at once, so that whole values are not held together.
    """
    found: dict[Probe, Tensor] = {}

    def see(probe: Probe, value: Tensor) -> None:
        found[probe] = probes[probe](value)
        if len(found) == len(probes):
            raise _AllSeen

    def see_input(probe: Probe, _module: nn.Module, args: tuple[Tensor, ...]) -> None:
        see(probe, args[0])

    def see_output(probe: Probe, _module: nn.Module, _args: Any, output: Tensor) -> None:
        see(probe, output)

    with ExitStack() as stack:
        for probe in probes:
            module = model.get_submodule(probe[0])
            if probe[1]:
                stack.callback(module.register_forward_pre_hook(partial(see_input, probe)).remove)
            else:
                stack.callback(module.register_forward_hook(partial(see_output, probe)).remove)
        with suppress(_AllSeen):
            model(**inputs)
    return found


def _as_it_is(value: Tensor) -> Tensor:
    return value
