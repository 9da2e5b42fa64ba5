# SPDX-License-Identifier: Apache-2.0
"""What belongs to a published ensemble, and what looks like a key to something else."""

import hashlib
import re
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

from edvit_hf.manifest import MANIFEST_NAME, Manifest
from edvit_hf.tasks import CODE_FILES, PROCESSOR_FILES

README, RESULTS, PLACEMENT = "README.md", "results.json", "placement.json"
MADE_FROM = re.compile(r"^made_from: ([0-9a-f]{16})$", re.MULTILINE)  # in a card's metadata block
_BESIDE = {MANIFEST_NAME, README, RESULTS, PLACEMENT, "model.safetensors.index.json", ".gitattributes", "CITATION.cff"}
_PICTURES = {".png", ".jpg", ".jpeg", ".gif", ".webp"}
_LEGAL = re.compile(r"(LICENSE|LICENCE|LICENSES|NOTICE|COPYING|AUTHORS)(\.(md|txt))?", re.IGNORECASE)
_LARGE = (".safetensors", ".onnx")  # held to hashes
_MOST_BYTES = 2**26
_SECRETS = re.compile(
    b"|".join(
        (
            rb"\bhf_[A-Za-z0-9]{30,}\b",
            rb"-----BEGIN [A-Z0-9 ]*PRIVATE KEY( BLOCK)?-----",
            rb"\b(AKIA|ASIA)[A-Z0-9]{16}\b",  # AWS
            rb"(?i:aws_secret_access_key|aws_session_token)[\"']?\s*[=:]\s*[\"']?[A-Za-z0-9/+]{30,}",
            rb"\bsk-((proj|ant|svcacct|admin|or)-[A-Za-z0-9_-]{20,}|[A-Za-z0-9]{32,})",  # OpenAI, Anthropic, OpenRouter
            rb"\b(gh[pousr]_[A-Za-z0-9]{36,}|github_pat_[A-Za-z0-9_]{22,})",
            rb"\bglpat-[A-Za-z0-9_-]{20,}",  # GitLab
            rb"\b(AIza[A-Za-z0-9_-]{35}|GOCSPX-[A-Za-z0-9_-]{20,}|ya29\.[A-Za-z0-9_-]{20,})",  # Google
            rb"\b(xox[abeoprs]-[A-Za-z0-9-]{10,}|xapp-[0-9A-Za-z-]{20,})|hooks\.slack\.com/services/[A-Za-z0-9/]{20,}",
            rb"\b[rs]k_live_[A-Za-z0-9]{20,}",  # Stripe
            rb"\b(npm_[A-Za-z0-9]{36}|pypi-AgE[A-Za-z0-9_-]{40,}|dckr_pat_[A-Za-z0-9_-]{20,})",
            rb"\beyJ[A-Za-z0-9_-]{15,}\.eyJ[A-Za-z0-9_-]{15,}\.[A-Za-z0-9_-]{15,}",  # a signed web token
            rb"\b(AccountKey|SharedAccessKey)=[A-Za-z0-9/+]{40,}",  # Azure
        )
    )
)


def is_part(path: str, manifest: Manifest) -> bool:
    """Whether a file is one of an ensemble: listed by its manifest, or of the kinds that lie beside it."""
    whole, known = PurePosixPath(path), {*manifest.content, *(variant.file for variant in manifest.variants)}
    if path in known or path in _BESIDE or path in CODE_FILES:
        return True
    if len(whole.parts) == 1:
        return path in PROCESSOR_FILES or _LEGAL.fullmatch(path) is not None
    if whole.parts[0] == "assets":
        return whole.suffix.lower() in _PICTURES
    if whole.parts[0] == ".eval_results":
        return whole.suffix in (".yaml", ".yml")
    return str(whole.parent) in {entry.path for entry in manifest.sub_models} and whole.name in PROCESSOR_FILES


def holds_secret(path: Path) -> bool:
    """Whether a file that is no weights holds what looks like a key of a service."""
    if path.suffix.lower() in _LARGE or path.is_symlink() or not path.is_file() or path.stat().st_size > _MOST_BYTES:
        return False
    return _SECRETS.search(path.read_bytes()) is not None


def code_faults(root: Path) -> Iterator[str]:
    """The code of the folder that is not that of this library, one sentence each: whoever loads it would run it."""
    for name in CODE_FILES:
        path = root / name
        if path.is_file() and path.read_bytes() != (Path(__file__).resolve().parents[1] / name).read_bytes():
            yield (
                f"{name} is not that of this version of edvit_hf: with `trust_remote_code` others would run it. Save "
                "the ensemble again with `save_pretrained`, or publish it with the version that wrote it."
            )


def made_from(root: Path) -> str:
    """A digest of what a card is made from: the manifest and the results as they lie in the folder."""
    digest = hashlib.sha256()
    for name in (MANIFEST_NAME, RESULTS):
        content = (root / name).read_bytes() if (root / name).is_file() else b""
        digest.update(hashlib.sha256(content).digest())
    return digest.hexdigest()[:16]


def is_stale(root: Path, metadata: str) -> bool:
    """Whether a card says that it was made from another manifest or other results; one that says nothing is not."""
    said = MADE_FROM.search(metadata)
    return said is not None and said[1] != made_from(root)
