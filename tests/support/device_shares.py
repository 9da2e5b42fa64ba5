# SPDX-License-Identifier: Apache-2.0
"""One device's share of a toy ensemble: what `edvit pull` leaves in a folder, without the fusion head."""

import shutil
from pathlib import Path

from edvit_hf.manifest import MANIFEST_NAME
from edvit_hf.tasks import PROCESSOR_FILES


def copy_share(root: Path, folder: Path, *sub_models: int, file: str = "model.onnx") -> Path:
    """Copy manifest, processor and one file of each of these sub-models into `folder`; return it."""
    names = [MANIFEST_NAME, *(name for name in PROCESSOR_FILES if (root / name).is_file())]
    for name in [*names, *(f"sub_models/{index:02d}/onnx/{file}" for index in sub_models)]:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, folder / name)
    return folder
