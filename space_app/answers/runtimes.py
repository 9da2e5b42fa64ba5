# SPDX-License-Identifier: Apache-2.0
"""Opens the graphs of an ensemble's folder, in this process or in a child's, on one thread and warmed up."""

import contextlib
import logging
from pathlib import Path

from answers.digit_form import FORM_SIDES
from answers.reading import Taker
from edvit_hf.errors import EDViTError, MissingExtraError, QuorumError
from edvit_hf.manifest import Manifest
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime
from edvit_hf.runtime.inputs import probe_inputs
from edvit_hf.transforms import ImageTransform

logger = logging.getLogger(__name__)

MAX_INPUT_VALUES = 4_000_000
"""Largest number of values in one prepared input: more would let one visitor fill the memory."""
# Nobody waits for a stuck sub-model for ever, and a line that is longer than this deadline is not joined.
CONFIG = CoordinatorConfig(deadline_ms=20_000, max_queued=32)

_TEN_DIGITS = tuple("0123456789")


class VisitorError(EDViTError):
    """What went wrong, in a visitor's words: nothing has to be translated any more."""


def open_runtime(folder: Path, title: str, config: CoordinatorConfig = CONFIG) -> EDViTRuntime:
    """The ensemble on one thread, warmed up: the first run allocates, which must stay off the clock.

    Raises:
        VisitorError: A sentence for the visitor.
    """
    try:
        manifest = Manifest.load(folder)
        has_fp32 = all(any(v.precision == "fp32" for v in entry.variants) for entry in manifest.sub_models)
        missing = [
            entry for entry in manifest.sub_models if not any((folder / v.file).exists() for v in entry.variants)
        ]
        if missing or not any((folder / variant.file).exists() for variant in manifest.fusion.variants):
            raise VisitorError(
                f"{title} holds no ONNX files for all of its sub-models, so nothing here can run it. "
                "Export it with `edvit export`, or name another one."
            )
        runtime = EDViTRuntime.from_pretrained(
            folder, num_threads=1, schedule="in_turn", precision="fp32" if has_fp32 else "int8", config=config
        )
        inputs = probe_inputs(runtime.task, runtime.input_shape)
        if sum(values.size for values in inputs.values()) > MAX_INPUT_VALUES:
            raise VisitorError(f"{title} takes inputs that are too large for this page. Name another ensemble.")
        runtime.predict(inputs)
        with contextlib.suppress(QuorumError):  # as every answer on the page is asked for
            runtime.predict_without(inputs, [(entry.index,) for entry in manifest.sub_models])
    except MissingExtraError as error:
        logger.error("%s", error)
        raise VisitorError(
            f"{title} needs a package that this page was set up without. Name another ensemble."
        ) from error
    except VisitorError:
        raise
    except EDViTError as error:
        logger.warning("could not open %s: %s", title, error)
        raise damaged(title) from error
    return runtime


def damaged(title: str) -> VisitorError:
    """What a visitor is told of an ensemble that cannot be opened; why is in the log."""
    return VisitorError(
        f"{title} is damaged, incomplete, or made by another version of edvit_hf. Export it again, or name another "
        "ensemble."
    )


def taker_of(runtime: EDViTRuntime) -> Taker:
    """What decides how its inputs are read."""
    is_digits = tuple(runtime.label_names) == _TEN_DIGITS
    size = runtime.transform.size if isinstance(runtime.transform, ImageTransform) else None
    return Taker(
        task=runtime.task,
        transform=runtime.transform,
        can_draw=is_digits and size in {(side, side) for side in FORM_SIDES},
        hears_words=is_digits and runtime.task == "audio-classification",
    )
