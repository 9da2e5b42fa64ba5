"""Opening exported graphs on onnxruntime, and checking that they are what the manifest promises."""

import logging
from collections.abc import Sequence
from pathlib import Path

import onnxruntime

from edvit_hf.cores import usable_cores
from edvit_hf.errors import EDViTError, ManifestError
from edvit_hf.manifest import Manifest, SubModelEntry, Variant, verify_file
from edvit_hf.profiles import detect_profile, unknown_profile
from edvit_hf.runtime.graph_files import check_self_contained
from edvit_hf.tasks import GRAPH_INPUTS

logger = logging.getLogger(__name__)

MAX_DEFAULT_THREADS = 4
MAX_THREADS = 1024  # more than any machine has cores for; the system refuses far fewer than onnxruntime would ask for


def session_options(num_threads: int | None, *, spin: bool = False) -> onnxruntime.SessionOptions:
    """Fixed threads that leave no core busy after a run; with `spin` they do not sleep while one lasts either."""
    if num_threads is None:
        num_threads = min(MAX_DEFAULT_THREADS, usable_cores())
    if num_threads < 1:
        raise EDViTError(f"`num_threads` must be at least 1, got {num_threads}. It is a number of cores, 0 is not all.")
    if num_threads > MAX_THREADS:
        raise EDViTError(
            f"`num_threads` must be at most {MAX_THREADS}, got {str(num_threads)[:60]}. More threads than cores make "
            "nothing faster, and the system refuses that many. Give a number of cores."
        )
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = num_threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.add_session_config_entry("session.intra_op.allow_spinning", "1" if spin else "0")
    if spin:
        options.add_session_config_entry("session.force_spinning_stop", "1")
    options.log_severity_level = 4  # what fails is raised, and said once
    return options


def check_profile(manifest: Manifest, profile: str | None) -> None:
    """Refuse a kind of hardware that neither this library nor the ensemble knows."""
    named = (name for variant in manifest.variants for name in variant.profiles)
    refusal = None if profile is None else unknown_profile(profile, named)
    if refusal is not None:
        raise EDViTError(refusal)


def suited_variant(entry: SubModelEntry, precision: str, profile: str | None) -> Variant:
    """The file of `precision` for `profile` (default: this machine's), else one for any hardware, else the first.

    int8 files run on every processor, but one made for other instructions may be slower, or less exact where sums of
    products saturate: a warning then names what fits.

    Raises:
        ManifestError: If there is no file of that precision; the message lists what there is.
    """
    variants = [v for v in entry.variants if v.precision == precision and v.inputs == "prepared"]
    if not any(variant.profiles for variant in variants):
        return entry.variant(precision, profile)
    here = _this_machine()
    wanted = profile or here
    fitting = wanted is not None and any(v.suits(wanted) or not v.profiles for v in variants)
    chosen = entry.variant(precision, wanted) if fitting else variants[0]
    if not fitting or (here is not None and chosen.profiles and not chosen.suits(here)):
        logger.warning(
            "sub-model %d: %s, and %s is made for %s: it may be slower or less exact here; %s",
            entry.index, f"no {precision} file for {wanted}" if not fitting else f"this machine is of kind {here}",
            chosen.name, ", ".join(chosen.profiles), _what_fits(entry, here),
        )  # fmt: skip
    return chosen


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


def open_session(root: Path, variant: Variant, options: onnxruntime.SessionOptions) -> onnxruntime.InferenceSession:
    """A session on one file, after checking that it holds its weights itself and has the promised hash."""
    check_self_contained(root / variant.file, variant.file)
    path = verify_file(root, variant)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
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
    num_classes = len(entry.class_group)
    needs_other = num_classes < len(manifest.label_names)  # a group of all classes may do without
    promised = {
        "features": [entry.feature_size],
        "logits": [num_classes + 1] if needs_other else [num_classes, num_classes + 1],
    }
    for name, sizes in promised.items():
        if isinstance(widths[name], int) and widths[name] not in sizes:
            raise ManifestError(
                f"{what}: the manifest promises {name} of size {sizes[0]}, the graph gives {widths[name]}. "
                f"Manifest and files do not belong together. Fetch or export the ensemble again."
            )


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


def check_indices(indices: Sequence[int], num_sub_models: int, argument: str) -> None:
    """Refuse an index that no sub-model has."""
    unknown = sorted(index for index in set(indices) if not 0 <= index < num_sub_models)
    if unknown:
        raise EDViTError(
            f"`{argument}` names sub-model {', '.join(map(str, unknown))}; this ensemble has 0 to "
            f"{num_sub_models - 1}. An index that does not exist is a mix-up of ensembles or a typing error. "
            "Correct it."
        )
