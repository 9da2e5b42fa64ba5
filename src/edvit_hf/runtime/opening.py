# SPDX-License-Identifier: Apache-2.0
"""What `EDViTRuntime.from_pretrained` opens beside sub-models: transform, fusion head, shape of inputs."""

import os
from pathlib import Path

from edvit_hf.errors import DeadlineError, EDViTError, ManifestError
from edvit_hf.hardware.timing import quiet_options
from edvit_hf.hub.selection import NeededFile
from edvit_hf.manifest import Manifest, verify_file
from edvit_hf.runtime.answers import Fusion
from edvit_hf.runtime.engines import Engine
from edvit_hf.runtime.engines.local import WARM_UP_SECONDS, LocalEngine, input_shape
from edvit_hf.runtime.inputs import common_shape, prepared_shape
from edvit_hf.runtime.sessions import check_fusion, open_verified
from edvit_hf.tasks import MAIN_INPUT, NEEDED_PROCESSOR_FILES, PREPROCESSING_FILE, PROCESSOR_FILES
from edvit_hf.transforms import Transform, load_transform


def transform_of(manifest: Manifest, root: Path) -> Transform:
    """What prepares inputs, from files whose hashes are those that the ensemble's content hash is over.

    Raises:
        ManifestError: A file is missing, altered, or read though the hash is not over it.
        DataError: The files are damaged.
    """
    task = manifest.ensemble.task
    if manifest.preprocessing != PREPROCESSING_FILE[task]:
        raise ManifestError(
            f"Expected `preprocessing` to be {PREPROCESSING_FILE[task]!r} for {task}, got {manifest.preprocessing!r}. "
            "Inputs would be prepared by another file than the manifest says. Fetch or export the ensemble again."
        )
    for name in PROCESSOR_FILES:
        listed = manifest.content.get(name)
        is_there = os.path.lexists(root / name)
        if listed is None and is_there and name in NEEDED_PROCESSOR_FILES:
            raise ManifestError(
                f"Expected no {name} in {root}, since the manifest vouches for none, got one. It would change how "
                "inputs are prepared, and with it the answers, under the same content hash. Remove it, or export the "
                "ensemble again."
            )
        if listed is not None and (is_there or name in NEEDED_PROCESSOR_FILES):
            verify_file(root, NeededFile(file=name, sha256=listed.sha256, bytes=listed.bytes))
    return load_transform(root, task)


def bind(engine: Engine, manifest: Manifest, transform: Transform) -> None:
    """Tell an engine that wants to know it which ensemble is asked and how its inputs are prepared.

    An engine that reaches other machines has a method `bind(manifest, transform)` for it.
    """
    tell = getattr(engine, "bind", None)
    if tell is not None:
        tell(manifest, transform)


def fusion_of(manifest: Manifest, root: Path) -> Fusion:
    """The fusion head, which has run once."""
    variant = manifest.fusion.variant("fp32")
    session = open_verified(root, variant, quiet_options(1))
    check_fusion(manifest, session)
    fusion = Fusion(manifest, session)
    try:
        fusion.fused(fusion.empty(1), [True] * len(manifest.sub_models), seconds=WARM_UP_SECONDS)
    except DeadlineError as error:
        raise ManifestError(
            f"{variant.file}: expected a fusion head that answers an empty input within {WARM_UP_SECONDS:.0f} s, got "
            "one that does not end. Nothing would ever be answered. Fetch or export the ensemble again."
        ) from error
    except EDViTError:
        pass  # what else it cannot do is told when it is asked
    return fusion


def shape_of_inputs(manifest: Manifest, transform: Transform, engine: LocalEngine | None) -> tuple[int | None, ...]:
    """Shape of one prepared item that all graphs in this process take."""
    shape = prepared_shape(transform)
    for index, session in engine.sessions.items() if engine is not None else ():
        shape = common_shape(shape, input_shape(session, MAIN_INPUT[manifest.ensemble.task]), f"sub-model {index}")
    return shape
