"""Latencies in a manifest: figures stand with each file, the protocols they were measured by once for all of them."""

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from edvit_hf.manifest.entries import Variant

Protocol = dict[str, Any]


def protocol_numbers(variants: Iterable[Variant]) -> list[int]:
    """Numbers of the protocols that any of these files was timed by, ascending."""
    numbers = {(variant.latency_ms or {}).get("protocol") for variant in variants}
    return sorted(number for number in numbers if number is not None)


def joined_protocols(kept: Sequence[Protocol], added: Sequence[Protocol]) -> tuple[list[Protocol], dict[int, int]]:
    """The kept protocols with the added ones after them, each once; and the new number of every added one."""
    joined = list(kept)
    numbers = {}
    for number, protocol in enumerate(added):
        if protocol not in joined:
            joined.append(protocol)
        numbers[number] = joined.index(protocol)
    return joined, numbers


def renumbered(variant: Variant, numbers: Mapping[int, int]) -> Variant:
    """The file with its protocol under the new number."""
    measured = variant.latency_ms
    if measured is None or measured.get("protocol") is None:
        return variant
    return dataclasses.replace(variant, latency_ms={**measured, "protocol": numbers[measured["protocol"]]})
