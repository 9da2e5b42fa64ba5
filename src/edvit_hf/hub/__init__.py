# SPDX-License-Identifier: Apache-2.0
"""The Hub: publish an ensemble in one commit, fetch one device's share of it.

Comes in: an ensemble's folder, or a repository's id with what a device needs. Goes out: one commit, or a verified
folder. Anybody may call it: pulling needs neither torch nor transformers, and from a local folder only the base
install.
"""

from edvit_hf.hub.pulling import Pulled, pull
from edvit_hf.hub.pushing import Push, Pushed, prepare_push, push
from edvit_hf.hub.selection import Selection, select_by_placement, select_by_profile

__all__ = [
    "Pulled",
    "Push",
    "Pushed",
    "Selection",
    "prepare_push",
    "pull",
    "push",
    "select_by_placement",
    "select_by_profile",
]
