# SPDX-License-Identifier: Apache-2.0
"""Rows of one role that are rows of another, too, by what their inputs hold: what was learnt tests nothing.

Comes in: the rows of each role. Goes out: how many are shared, with a few of them named, the error that refuses them,
or the roles without them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from edvit_hf.data.contents import UNREADABLE, input_digests
from edvit_hf.data.roles import Role
from edvit_hf.errors import DataError
from edvit_hf.tasks import Task

_PAIRS = (("train", "test"), ("train", "validation"), ("validation", "test"))
_NAMED = 3


@dataclass(frozen=True)
class Overlap:
    """What two roles share.

    Attributes:
        first: The role that learns, or chooses.
        second: The role that is to say how well.
        num_shared: Rows of the second whose input is a row of the first, too.
        num_rows: Of the second.
        named: The first of them, each beside its twin.
    """

    first: str
    second: str
    num_shared: int
    num_rows: int
    named: tuple[str, ...]

    def __str__(self) -> str:
        """How many, and which."""
        share = 100 * self.num_shared / max(1, self.num_rows)
        more = ", ..." if self.num_shared > len(self.named) else ""
        return (
            f"{self.num_shared} of {self.num_rows} {self.second} rows ({share:.3g} %) are {_CALLED[self.first]} rows, "
            f"too: {', '.join(self.named)}{more}"
        )


_CALLED = {"train": "training", "validation": "validation"}


def find_overlaps(roles: Mapping[str, Role], task: Task) -> list[Overlap]:
    """What training, validation and test rows share, pair by pair; pairs that share nothing are there with 0 rows.

    Raises:
        DataError: An input of a type that no transform reads.
    """
    digests = _digests(roles, task)
    found = []
    for first, second in _PAIRS:
        twins = {digest: place for place, digest in reversed(list(enumerate(digests[first])))}
        twins.pop(UNREADABLE, None)
        shared = [place for place, digest in enumerate(digests[second]) if digest in twins]
        named = tuple(
            f"{_name(roles[second], place, task)} is {_name(roles[first], twins[digests[second][place]], task)}"
            for place in shared[:_NAMED]
        )
        found.append(Overlap(first, second, len(shared), len(digests[second]), named))
    return found


def refuse_overlaps(overlaps: Sequence[Overlap]) -> None:
    """Raise `DataError` where training rows are test or validation rows, too."""
    found = [overlap for overlap in overlaps if overlap.first == "train" and overlap.num_shared]
    if found:
        raise DataError(
            f"Expected test and validation rows that are no training rows, got {'; '.join(map(str, found))}. What was "
            "learnt by heart would be counted as understood. Take them out of the data, name other splits, or write "
            "`dataset.on_overlap: drop`, which leaves those training rows out (`keep` trains on them, and the results "
            "say how many there are)."
        )


def without_shared(roles: Mapping[str, Role], task: Task) -> dict[str, int]:
    """Take out of the training rows those of validation and test, and out of the validation rows those of the test.

    Returns:
        Role -> how many rows it lost.

    Raises:
        DataError: Nothing is left of a role.
    """
    digests = _digests(roles, task)
    lost = {}
    for role, others in (("train", ("validation", "test")), ("validation", ("test",))):
        known = {digest for other in others for digest in digests[other]} - {UNREADABLE}
        stays = np.fromiter((digest not in known for digest in digests[role]), bool, len(digests[role]))
        if not stays.any():
            raise DataError(
                f"Expected {role} rows that are not among the {' or '.join(others)} rows, got none: all {len(stays)} "
                "are. With `on_overlap: drop` nothing is left to learn from. Name other splits."
            )
        roles[role].rows = roles[role].rows[stays]
        lost[role] = int((~stays).sum())
    return lost


def _digests(roles: Mapping[str, Role], task: Task) -> dict[str, list[bytes]]:
    return {name: input_digests(role.split.items, role.rows, task) for name, role in roles.items()}


def _name(role: Role, place: int, task: Task) -> str:
    """A row as a person finds it: its file, or its number in its split, with the text itself."""
    row = int(role.rows[place])
    item = next(iter(role.split.items.read(role.rows[place : place + 1])))
    where = f"row {row} of {role.split.name!r}"
    if not isinstance(item, str):
        return where
    return f"{where} ({item[:40]!r})" if task == "text-classification" else item
