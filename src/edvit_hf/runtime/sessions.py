# SPDX-License-Identifier: Apache-2.0
"""Opening exported graphs on onnxruntime, and checking that they are what the manifest promises."""

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, get_args

import onnxruntime

from edvit_hf.errors import EDViTError, ManifestError
from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.profiles import unknown_profile
from edvit_hf.manifest import Manifest, SubModelEntry, Variant
from edvit_hf.manifest.entries import Precision, suited_variants
from edvit_hf.manifest.graphs import verified_graph
from edvit_hf.runtime.engines.lanes import run_within
from edvit_hf.tasks import FUSION_INPUTS, FUSION_READS, GRAPH_INPUTS, vote_sizes

logger = logging.getLogger(__name__)

OPEN_SECONDS = 120.0  # for one file; more than any that is worth waiting for
FILES_AT_THEIR_LIMIT = 5  # so many times that for all files together

_MOST_NAMED = 3


class SlowGraphError(ManifestError):
    """A graph was not open within its time."""


@dataclass
class OpeningTime:
    """Seconds that onnxruntime may take for one file, and what is left of those for all.

    Reading and hashing are not counted: they end, however slow a disk is.
    """

    each: float
    left: float

    def run(self, work: Callable[[], Any], on_stop: Callable[[], None]) -> Any:
        """What `work` returns.

        Raises:
            TimeoutError: It takes too long; the message is how long it had.
        """
        seconds = max(0.0, min(self.each, self.left))
        begin = time.monotonic()
        try:
            return run_within(seconds, "edvit-open", work, on_stop)
        except TimeoutError as error:
            of_all = "" if seconds == self.each else ", what was left for all files together"
            raise TimeoutError(f"{seconds:.3g} s{of_all}") from error
        finally:
            self.left -= time.monotonic() - begin


def check_profile(manifest: Manifest, profile: str | None) -> None:
    """Refuse a kind of hardware that neither this library nor the ensemble knows."""
    if profile is not None and (refusal := unknown_profile(profile, manifest.profiles)):
        raise EDViTError(refusal)


def chosen_variants(entries: Sequence[SubModelEntry], precision: str, profile: str | None) -> dict[int, Variant]:
    """Sub-model -> its file of `precision` for `profile` (default: this machine), or any hardware, or else the first.

    int8 files run on every processor, but one made for other instructions may be slower, or less exact where sums of
    products saturate: a warning then names what fits, once for all sub-models of which the same is to be said.

    Raises:
        ManifestError: If there is no file of that precision; the message lists what there is.
    """
    chosen, warnings = {}, dict[str, list[int]]()
    for entry in entries:
        chosen[entry.index], warning = _suited(entry, precision, profile)
        if warning is not None:
            warnings.setdefault(warning, []).append(entry.index)
    for warning, indices in warnings.items():
        logger.warning("sub-model%s %s: %s", "s" * (len(indices) > 1), ", ".join(map(str, indices)), warning)
    return chosen


def _suited(entry: SubModelEntry, precision: str, profile: str | None) -> tuple[Variant, str | None]:
    """Choose the file of one sub-model; return it with the warning, or None."""
    every = suited_variants(entry.variants, precision, None)
    if not any(variant.profiles for variant in every):
        return entry.variant(precision, profile), None
    here = _this_machine()
    wanted = profile or here
    suited = [] if wanted is None else suited_variants(entry.variants, precision, wanted)
    chosen = (suited or every)[0]
    if suited and (here is None or not chosen.profiles or chosen.suits(here)):
        return chosen, None
    why = f"no {precision} file for {wanted}" if not suited else f"this machine is of kind {here}"
    return chosen, (
        f"{why}, and {chosen.name} is made for {', '.join(chosen.profiles)}: it may be slower or less exact here; "
        f"{_what_fits(entry, here)}"
    )


def _what_fits(entry: SubModelEntry, here: str | None) -> str:
    """The files that this machine runs as they were meant, int8 ones first."""
    fits = [v for v in entry.variants if v.inputs == "prepared" and (not v.profiles or (here and v.suits(here)))]
    names = [v.name for v in sorted(fits, key=lambda v: not v.profiles)]
    if here is not None and not any(v.profiles for v in fits):
        names.append(f"an int8 file that `edvit export DIR --profile {here}` would write")
    return f"what fits: {', '.join(names)}"


def _this_machine() -> str | None:
    """The kind of this machine; None for an architecture that no profile knows."""
    try:
        return detect_profile()
    except ManifestError:
        return None


def check_share(root: Path, manifest: Manifest, indices: Sequence[int], precision: str, profile: str | None) -> None:
    """Refuse a folder that lacks the graphs of the sub-models `indices`, or the fusion head.

    It may be one device's share of an ensemble: the message tells what it holds and how to use that. What else is wrong
    with files is found when they are opened.

    Raises:
        ManifestError: A file is missing, or none is listed that suits.
    """
    head = manifest.fusion.variant("fp32")
    chosen = {index: _suited(manifest.sub_models[index], precision, profile)[0] for index in indices}
    lacking = [index for index, variant in chosen.items() if not (root / variant.file).is_file()]
    has_head = (root / head.file).is_file()
    if not lacking and has_head:
        return
    held = {entry.index: found for entry in manifest.sub_models if (found := _held(root, entry))}
    wanted = [f"{chosen[index].file} ({chosen[index].precision} of sub-model {index})" for index in lacking]
    wanted += [] if has_head else [f"{head.file} (the fusion head)"]
    got = [f"sub-model {i} as {' and '.join(map(_named, found))}" for i, found in held.items()]
    advice = _how_to_use(held, lacking) if lacking else []
    if not has_head:
        advice.append(f"Fetch the fusion head too: `{_pull_line(held)}`.")
    raise ManifestError(
        f"Expected {_listed(wanted)} in {root}, got {_listed(got) or 'no sub-model'} and {'the' if has_head else 'no'} "
        "fusion head. What is listed in the manifest but missing cannot answer; a folder that was fetched for one "
        f"device holds its share only. {' '.join([*advice, 'Or fetch or export all of it again.'])}"
    )


def held_variants(root: Path, manifest: Manifest, precision: str | None, profile: str | None) -> dict[int, Variant]:
    """Sub-model -> the file of it that lies in a folder, for each of which there is one.

    Where several do, the one of `precision` (None: the first there is of fp32, fp16, int8) that suits `profile` (None:
    this machine) best. Whether it is what the manifest promises is found when it is opened.
    """
    chosen = {}
    for entry in manifest.sub_models:
        held = _held(root, entry)
        for name in get_args(Precision) if precision is None else (precision,):
            suited = suited_variants(held, name, profile or _this_machine()) or suited_variants(held, name, None)
            if suited:
                chosen[entry.index] = suited[0]
                break
    return chosen


def share_variants(
    root: Path, manifest: Manifest, sub_models: Sequence[int] | None, profile: str | None
) -> dict[int, Variant]:
    """Sub-model -> its file, as `held_variants` chooses it, of a whole export or of what was pulled for one device.

    A sub-model that has no folder of its own here is another device's: it is left out, and is missing in every answer.
    Where the folder is there and the graph is not, it is damaged.

    Args:
        root: The folder.
        manifest: Of all of it.
        sub_models: Only these; None: those that the folder holds.
        profile: See `held_variants`.

    Raises:
        ManifestError: A graph or the fusion head is missing; the message tells what there is.
    """
    held = held_variants(root, manifest, None, profile)
    paths = {entry.index: root / entry.path for entry in manifest.sub_models}
    wanted = [i for i, path in paths.items() if i in held or path.is_dir()] if sub_models is None else sub_models
    lacking = [index for index in wanted if index not in held]
    check_share(root, manifest, lacking or ([] if wanted else list(paths)), "fp32", profile)
    chosen = {index: held[index] for index in wanted if index in held}
    here = _this_machine()
    for index, variant in chosen.items():
        if variant.profiles and not (here and variant.suits(here)):
            made = ", ".join(variant.profiles)
            what = "%s is made for %s, and this machine is of kind %s: it may be slower or less exact here"
            logger.warning(f"sub-model %d: {what}", index, variant.name, made, here)
    return chosen


def _held(root: Path, entry: SubModelEntry) -> list[Variant]:
    return [v for v in entry.variants if v.inputs == "prepared" and (root / v.file).is_file()]


def _named(variant: Variant) -> str:
    return f"{variant.precision}{' for ' + ', '.join(variant.profiles) if variant.profiles else ''}"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _MOST_NAMED
    return ", ".join([*names[:_MOST_NAMED], *([f"{more} more"] if more > 0 else [])])


def _how_to_use(held: Mapping[int, list[Variant]], lacking: Sequence[int]) -> list[str]:
    """What to ask for so that what is there is used."""
    if not held:
        return []
    options = []
    if not set(lacking) <= held.keys():
        options.append(" ".join(f"--sub-model {index}" for index in held) + f" (`sub_models={list(held)}`)")
    variant = next(iter(held.values()))[0]
    if set(lacking) & held.keys():
        options.append(f"--precision {variant.precision} (`precision={variant.precision!r}`)")
        options += [f"--profile {name} (`profile={name!r}`)" for name in variant.profiles[:1]]
    return [f"Ask for what is there: {', '.join(options)}."]


def _pull_line(held: Mapping[int, list[Variant]]) -> str:
    """The command that fetches the same share with the fusion head."""
    options = "".join(f" --sub-model {index}" for index in held)
    for variant in [found[0] for found in held.values()][:1]:
        options += f" --precision {variant.precision}" + "".join(f" --profile {name}" for name in variant.profiles[:1])
    return f"edvit pull REPO{options} --fusion"


def open_verified(
    root: Path, variant: Variant, options: onnxruntime.SessionOptions, *, within: OpeningTime | None = None
) -> onnxruntime.InferenceSession:
    """A session on one file, after checking that it holds its weights itself and has the promised hash.

    onnxruntime computes what is constant in a graph while it opens it, and writes out functions within functions: a
    small file can ask for more than ever ends. What takes longer than `within` (None: 120 s) is given up.

    Raises:
        SlowGraphError: The file cannot be opened in that time.
        ManifestError: It is not as promised, or cannot be opened.
    """
    within = within or OpeningTime(OPEN_SECONDS, OPEN_SECONDS)
    try:
        with verified_graph(root, variant) as graph:
            return within.run(
                lambda: onnxruntime.InferenceSession(graph.path, options, providers=["CPUExecutionProvider"]),
                lambda: options.set_load_cancellation_flag(True),
            )
    except ManifestError:
        raise
    except TimeoutError as error:
        raise SlowGraphError(
            f"{variant.file}: expected a graph that opens within {error}, got one that onnxruntime is still at. It "
            "computes without end while it is opened, or this machine is far too slow for it. Fetch or export the "
            "ensemble again."
        ) from error
    except Exception as error:  # onnxruntime raises bare types of its own extension module
        raise ManifestError(
            f"{variant.file} has the promised hash, but onnxruntime {onnxruntime.__version__} cannot open "
            f"it: {error}. Upgrade onnxruntime, or export again with a lower opset (this file: "
            f"{variant.opset})."
        ) from error


def check_sub_model(manifest: Manifest, index: int, session: onnxruntime.InferenceSession) -> None:
    """The graph must have the promised names, feature size and number of votes."""
    entry = manifest.sub_models[index]
    what = f"sub-model {index}"
    check_signature(session, inputs=GRAPH_INPUTS[manifest.ensemble.task], outputs=("features", "logits"), what=what)
    widths = {output.name: output.shape[-1] for output in session.get_outputs()}
    usual = vote_sizes(entry.class_group, len(manifest.label_names))
    votes = usual if entry.vote_size is None else [entry.vote_size]
    promised = {"features": [entry.feature_size], "logits": votes}
    for name, sizes in promised.items():
        if isinstance(widths[name], int) and widths[name] not in sizes:
            raise ManifestError(
                f"{what}: the manifest promises {name} of size {sizes[0]}, the graph gives {widths[name]}. "
                f"Manifest and files do not belong together. Fetch or export the ensemble again."
            )


def check_fusion(manifest: Manifest, session: onnxruntime.InferenceSession) -> None:
    """The fusion's graph must take what its kind reads, the mask and nothing else, and give logits.

    Graphs that were exported earlier take no votes, others all three whether they read them or not.
    """
    needed, found = {*FUSION_READS[manifest.fusion.kind], "mask"}, [item.name for item in session.get_inputs()]
    expected = [name for name in FUSION_INPUTS if name in needed or name in found]
    check_signature(session, inputs=expected, outputs=("logits",), what="the fusion head")


def check_signature(
    session: onnxruntime.InferenceSession, *, inputs: Sequence[str], outputs: Sequence[str], what: str
) -> None:
    """The graph must have exactly these inputs, and these outputs among its own."""
    found_inputs = [item.name for item in session.get_inputs()]
    found_outputs = [item.name for item in session.get_outputs()]
    if sorted(found_inputs) != sorted(inputs) or not set(outputs) <= set(found_outputs):
        raise ManifestError(
            f"{what}: expected a graph from {', '.join(inputs)} to {', '.join(outputs)}, got one from "
            f"{', '.join(found_inputs)} to {', '.join(found_outputs)}. It was not exported for this runtime. "
            "Export again."
        )
