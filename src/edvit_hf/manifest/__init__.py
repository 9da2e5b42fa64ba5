# SPDX-License-Identifier: Apache-2.0
"""The manifest: the JSON contract between export, the Hub and the devices, checked whenever it is read.

Comes in: what an export wrote, or a `manifest.json` from anywhere. Goes out: entries that can be relied on, hashes, the
file that suits a device, a placement. Anybody may call it: a device reads it with the standard library and yaml alone.

```python
from pathlib import Path
from edvit_hf.manifest import Manifest, verify_file

folder = Path("space_app/model/digits")
for part in Manifest.load(folder).sub_models:
    print(part.index, part.class_group, verify_file(folder, part.variant("fp32")))
```
"""

from edvit_hf.manifest.document import MANIFEST_NAME, SCHEMA_VERSION, Manifest
from edvit_hf.manifest.entries import (
    Calibration,
    EnsembleEntry,
    FusionEntry,
    Parity,
    Quantization,
    SubModelEntry,
    Variant,
)
from edvit_hf.manifest.hashes import (
    ContentFile,
    check_relative_path,
    content_files,
    content_hash,
    file_sha256,
    hash_of_content,
    hash_of_files,
    verify_file,
)

__all__ = [
    "MANIFEST_NAME",
    "SCHEMA_VERSION",
    "Calibration",
    "ContentFile",
    "EnsembleEntry",
    "FusionEntry",
    "Manifest",
    "Parity",
    "Quantization",
    "SubModelEntry",
    "Variant",
    "check_relative_path",
    "content_files",
    "content_hash",
    "file_sha256",
    "hash_of_content",
    "hash_of_files",
    "verify_file",
]
