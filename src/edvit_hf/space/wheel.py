# SPDX-License-Identifier: Apache-2.0
"""How a Space installs the library: from a wheel that is built and checked here, or by its released version."""

import hashlib
import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from email.parser import HeaderParser
from pathlib import Path

from edvit_hf import __version__
from edvit_hf.errors import EDViTError
from edvit_hf.space.page import PACKAGE, checkout

WHEELS = f"{PACKAGE}-*.whl"
_EXTRAS = "[device,hub]"  # what the page needs of the library's extras; gradio has a line of its own
_OURS = re.compile(rf"(\./)?{PACKAGE}(?![A-Za-z0-9_])")
_LONGEST_BUILD_S = 300


def build_wheel(folder: Path) -> Path:
    """Build the wheel of the checkout that this package runs from.

    Args:
        folder: Where to.

    Raises:
        EDViTError: This is no checkout, or the build failed.
    """
    root = checkout()
    if root is None:
        raise EDViTError(
            "Expected a source checkout to build the library's wheel from, got an installed package. The Space would "
            "have no library. Name a wheel with --wheel FILE, or leave it out to use the released version."
        )
    with tempfile.TemporaryDirectory() as place:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check", "--no-deps"]
        if importlib.util.find_spec("hatchling") is not None:  # what builds it is here: nothing has to be fetched
            command += ["--no-build-isolation", "--no-index"]
        try:
            done = subprocess.run(
                [*command, "--wheel-dir", place, str(root)],
                capture_output=True,
                text=True,
                check=False,
                timeout=_LONGEST_BUILD_S,
            )
            said, failed = done.stderr.strip()[-2000:], done.returncode != 0
        except subprocess.TimeoutExpired:
            said, failed = f"no end after {_LONGEST_BUILD_S} s", True
        built = sorted(Path(place).glob(WHEELS))
        if failed or len(built) != 1:
            raise EDViTError(
                f"Expected one wheel of the library, got {len(built)} ({said or 'pip said nothing'}). The Space would "
                "have no library. Try `pip wheel --no-deps .` in the checkout, or name a wheel with --wheel FILE."
            )
        return Path(shutil.copyfile(built[0], folder / built[0].name))


def check_wheel(wheel: Path) -> None:
    """Refuse a file that is not this version's wheel.

    Raises:
        EDViTError: It does not exist, is no wheel, or is one of something else or of another version.
    """
    try:
        if not wheel.is_file():  # a device such as /dev/full would be read without end
            raise OSError("there is no ordinary file")
        with zipfile.ZipFile(wheel) as archive:
            (name,) = [n for n in archive.namelist() if re.fullmatch(r"[^/]+\.dist-info/METADATA", n)]
            found = HeaderParser().parsestr(archive.read(name).decode("utf-8"))
    except (OSError, ValueError, zipfile.BadZipFile, NotImplementedError) as error:
        raise EDViTError(
            f"Expected a wheel of {PACKAGE}, got {wheel}, which cannot be read as one ({error}). The Space could not "
            "install it. Build it with `pip wheel --no-deps .` in a checkout."
        ) from error
    is_named = re.fullmatch(rf"{PACKAGE}-[\w.+]+-py3-none-any\.whl", wheel.name) is not None
    if found["Name"] != PACKAGE or found["Version"] != __version__ or not is_named:
        raise EDViTError(
            f"Expected the wheel of {PACKAGE} {__version__}, got {wheel.name} of {found['Name']} {found['Version']}. "
            "The page is written for this version and would fail on another. Build the wheel of this one."
        )


def name_library(requirements: Path, wheel: Path | None, address: str | None = None) -> None:
    """Write how the library is installed into `requirements.txt`, in place of its line there.

    Args:
        requirements: The file.
        wheel: The wheel that lies beside it; None names the released version.
        address: Where the Space's files will be served, without "/" at its end. A Space installs what
            `requirements.txt` names before its own files are there, so a path would lead nowhere; the hash makes a
            rebuilt wheel of the same version another requirement, which the builder does not take from its cache.

    Raises:
        EDViTError: The file does not name the library on exactly one line.
    """
    lines = requirements.read_text(encoding="utf-8").splitlines()
    ours = [i for i, line in enumerate(lines) if _OURS.match(line)]
    if len(ours) != 1:
        raise EDViTError(
            f"Expected {requirements} to name {PACKAGE} on exactly one line, got {len(ours)}. Its place is where the "
            "Space finds the library. Restore the file."
        )
    if wheel is None:
        lines[ours[0]] = f"{PACKAGE}{_EXTRAS}=={__version__}"
    elif address is None:
        lines[ours[0]] = f"./{wheel.name}{_EXTRAS}"
    else:
        digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
        lines[ours[0]] = f"{PACKAGE}{_EXTRAS} @ {address}/{wheel.name}#sha256={digest}"
    requirements.write_text("\n".join(lines) + "\n", encoding="utf-8")


def named_version(requirements: Path, package: str) -> str | None:
    """The version that `requirements.txt` pins a package to; None if it does not."""
    pattern = re.compile(rf"{re.escape(package)}(\[[^\]]*\])?==([\w.+!]+)\s*(#.*)?")
    found = [
        match[2] for line in requirements.read_text(encoding="utf-8").splitlines() if (match := pattern.fullmatch(line))
    ]
    return found[0] if len(found) == 1 else None
