# SPDX-License-Identifier: Apache-2.0
"""The Space: the page that shows ensembles, run here, written as a folder, or published on the Hub.

Comes in: finished ensembles. Goes out: a page on this machine, a folder that is a whole Space, or one commit. The
command line calls it. The page itself is `space_app/` (in an installed package `edvit_hf/space_app/`) and runs without
torch.
"""

from edvit_hf.space.assembling import assemble
from edvit_hf.space.bundle import bundle, named_ensembles
from edvit_hf.space.page import run_page
from edvit_hf.space.publishing import PublishedSpace, files_address, permitted, publish

__all__ = [
    "PublishedSpace",
    "assemble",
    "bundle",
    "files_address",
    "named_ensembles",
    "permitted",
    "publish",
    "run_page",
]
