"""The manifest: the JSON contract between export, the Hub and the devices, checked whenever it is read.

Light by design: standard library and yaml only, so that a device can read and verify what it downloaded.
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
