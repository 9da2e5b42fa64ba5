# SPDX-License-Identifier: Apache-2.0
"""What takes seconds to build is built once for all processes of a test run."""

import fcntl
import os


def built_once(tmp_path_factory, name, build):
    """The folder that `build(folder)` fills, by whichever process comes first; the others wait for it. Read only."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:  # its own folder lies in that of the run
        root = root.parent
    folder, done = root / "shared" / name, root / "shared" / f"{name}.done"
    folder.parent.mkdir(exist_ok=True)
    with (root / "shared" / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not done.exists():  # where building failed, it fails for whoever comes next too
            build(folder)
            done.touch()
    return folder
