"""What this machine can run, and the known bad pairs of packages, as a report."""

import importlib.metadata
import os
import socket
import urllib.parse
from dataclasses import asdict, dataclass
from typing import Any, Literal

from edvit_hf.hardware.machine import detect_profile
from edvit_hf.hardware.provenance import machine, versions


@dataclass(frozen=True)
class Finding:
    """One line of the report: `ok`, `note` or `bad`, what was seen and what to do."""

    level: Literal["ok", "note", "bad"]
    subject: str
    text: str


def examine(*, check_hub: bool = True, timeout_s: float = 3.0) -> dict[str, Any]:
    """Versions, cores and threads, hardware profile, bad pairs, Hub reachability; JSON-able."""
    findings = [_threads(), *_bad_pairs()]
    if check_hub:
        findings.append(_hub(timeout_s))
    return {
        "machine": machine(),
        "profile": detect_profile(),
        "versions": versions(),
        "findings": [asdict(f) for f in findings],
        "healthy": all(f.level != "bad" for f in findings),
    }


def _installed(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _threads() -> Finding:
    from edvit_hf.training.threads import usable_physical_cores, use_all_cores

    cores = usable_physical_cores()
    if _installed("torch") is None:
        return Finding("note", "threads", f"{cores} cores; torch is not installed, so nothing trains here")
    threads = use_all_cores()
    if threads < cores:
        setting = {k: os.environ[k] for k in ("OMP_NUM_THREADS", "EDVIT_NUM_THREADS") if k in os.environ}
        return Finding(
            "note", "threads",
            f"{threads} of {cores} cores are used ({setting or 'no setting found'}). Training is slower than it could "
            f"be: set EDVIT_NUM_THREADS={cores}.",
        )  # fmt: skip
    return Finding("ok", "threads", f"{threads} threads on {cores} cores")


def _bad_pairs() -> list[Finding]:
    """Package pairs that break imports; each was seen to fail."""
    torch, torchvision, timm = _installed("torch"), _installed("torchvision"), _installed("timm")
    findings = []
    if torch and "+cpu" in torch and torchvision and "+cpu" not in torchvision:
        findings.append(
            Finding(
                "bad",
                "torch and torchvision",
                f"CPU torch {torch} with torchvision {torchvision}: the operator torchvision::nms does not exist, and "
                "Transformers then cannot import its models. Uninstall torchvision: nothing here needs it.",
            )
        )
    if timm and not torchvision:
        findings.append(
            Finding(
                "bad",
                "timm without torchvision",
                f"timm {timm} needs torchvision to import; an importable-but-broken timm breaks `accelerate launch`. "
                "Uninstall timm: nothing here needs it.",
            )
        )
    if _installed("optimum-onnx"):
        findings.append(
            Finding(
                "bad",
                "optimum-onnx and transformers 5",
                "optimum-onnx pins transformers below 4.58 and fails on import beside 5.x. Uninstall it: the graphs "
                "come from transformers.exporters.",
            )
        )
    return findings or [Finding("ok", "packages", "no known bad pair is installed")]


def _hub(timeout_s: float) -> Finding:
    """Whether the Hub endpoint accepts a connection; an offline machine is a note, not a fault."""
    endpoint = os.environ.get("HF_ENDPOINT", "https://huggingface.co")
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}:
        return Finding("note", "Hub", "HF_HUB_OFFLINE is set: only local files and the cache are used")
    parts = urllib.parse.urlsplit(endpoint)
    port = parts.port or (443 if parts.scheme == "https" else 80)
    try:
        with socket.create_connection((parts.hostname or "", port), timeout=timeout_s):
            return Finding("ok", "Hub", f"{endpoint} is reachable")
    except OSError as error:
        return Finding(
            "note", "Hub", f"{endpoint} is not reachable ({error}). Hub ids cannot be downloaded; local folders, "
            "EDVIT_DATA_DIR and the cache still work.",
        )  # fmt: skip
