# SPDX-License-Identifier: Apache-2.0
"""Writes measured latencies into an ensemble's manifest."""

from dataclasses import replace
from pathlib import Path

from edvit_hf.bench.measure import BenchReport, BenchRow
from edvit_hf.errors import ManifestError
from edvit_hf.manifest import Manifest, Variant
from edvit_hf.manifest.document import joined_protocols, protocol_numbers, renumbered

_FIGURES = ("median", "p90", "min", "max", "runs", "load_ms", "peak_memory_mib")


def save_latencies(report: BenchReport, root: Path | str) -> Manifest:
    """Write the figures of a report into the manifest of the ensemble it was measured on, whole or not at all.

    `latency_ms` of every measured file then holds the figures (ms of one call) and the number of their protocol, and
    replaces what was there: one machine's, the last that was asked. Files that were not measured keep what they have.
    A protocol stands once in the manifest, which every device fetches, and goes when no figure is of it any more. The
    content hash is over other files and stays.

    Raises:
        ManifestError: If the folder holds another ensemble by now, or a measured file has been exported anew.
    """
    root = Path(root)
    manifest = Manifest.load(root)
    rows = {row.file: row for row in report.rows}
    files = {variant.file: variant for variant in manifest.variants}
    stale = [f for f, row in rows.items() if f not in files or files[f].bytes != row.bytes]
    if manifest.ensemble.content_hash != report.content_hash or stale:
        raise ManifestError(
            f"Expected the ensemble that was measured, got another one in {root}"
            f"{f' (changed: {stale[0]})' if stale else ''}. The figures would be of other files. Measure again."
        )
    used = protocol_numbers(v for v in manifest.variants if v.file not in rows)
    kept = [manifest.latency_protocols[number] for number in used]
    protocols, added = joined_protocols(kept, [dict(report.protocol)])
    numbers = {old: position for position, old in enumerate(used)}

    def with_latency(variants: list[Variant]) -> list[Variant]:
        return [
            _with_latency(v, rows[v.file], report, added[0]) if v.file in rows else renumbered(v, numbers)
            for v in variants
        ]

    changed = replace(
        manifest,
        latency_protocols=protocols,
        sub_models=[replace(entry, variants=with_latency(entry.variants)) for entry in manifest.sub_models],
        fusion=replace(manifest.fusion, variants=with_latency(manifest.fusion.variants)),
        whole=with_latency(manifest.whole),
    )
    changed.save(root)
    return changed


def _with_latency(variant: Variant, row: BenchRow, report: BenchReport, protocol: int) -> Variant:
    figures = {name: getattr(row, name) for name in _FIGURES}
    measured = {**figures, "profile": report.protocol["profile"], "protocol": protocol}
    return replace(variant, latency_ms=measured, latency_note=None)
