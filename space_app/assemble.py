"""Fills the Space: copies what the page needs from a finished ensemble into `model/`, and with `--wheel` the library.

Usage: python space_app/assemble.py work/digits/09_card/ensemble
"""

import argparse
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from edvit_hf.errors import EDViTError
from edvit_hf.manifest import Manifest
from edvit_hf.storage import PARTIAL_SUFFIX, whole_folder

HERE = Path(__file__).resolve().parent
CARD = "MODEL_CARD.md"  # the Space's own README.md holds its settings
OPTIONAL = {"results.json": "results.json", "README.md": CARD, "assets": "assets"}


def assemble(ensemble: Path, space: Path = HERE) -> Path:
    """Copy what the Space needs from a finished ensemble into `space/model/`.

    `manifest.json`, the preprocessing file that it names, `onnx/` and `sub_models/*/onnx/` are needed; `results.json`,
    the card (as `MODEL_CARD.md`) and its figures come along where they exist. Weights of the trained models stay
    behind. Every graph is checked against the manifest before the new folder takes the place of the old one.

    Returns:
        `Path`: The filled folder.

    Raises:
        ManifestError: `ensemble` is no exported ensemble, or a file of it is missing or altered.
        EDViTError: It has no preprocessing file.
    """
    manifest = Manifest.load(ensemble)
    manifest.verify_files(ensemble)
    needed = ["manifest.json", manifest.preprocessing, *(variant.file for variant in manifest.variants)]
    if not (ensemble / manifest.preprocessing).is_file():
        raise EDViTError(
            f"{ensemble} has no {manifest.preprocessing}: the page could not bring a picture into the form the "
            "sub-models were trained on. Give the folder that `edvit run` names at its end."
        )
    model = space / "model"
    with whole_folder(model) as partial:
        for name in needed:
            (partial / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ensemble / name, partial / name)
        for name, target in OPTIONAL.items():
            if (ensemble / name).is_dir():
                shutil.copytree(ensemble / name, partial / target)
            elif (ensemble / name).is_file():
                shutil.copy2(ensemble / name, partial / target)
        manifest.verify_files(partial)
    return model


def add_wheel(space: Path = HERE) -> Path:
    """Build the library's wheel beside `requirements.txt` and name it there in place of the released version.

    Returns:
        `Path`: The wheel; an older one of the library is removed.

    Raises:
        EDViTError: This is no source checkout, the build failed, or `requirements.txt` does not name the library.
    """
    requirements = space / "requirements.txt"
    lines = requirements.read_text(encoding="utf-8").splitlines()
    ours = [i for i, line in enumerate(lines) if re.match(r"(\./)?edvit_hf\b|(\./)?edvit_hf-", line)]
    if len(ours) != 1:
        raise EDViTError(
            f"{requirements} must name edvit_hf on exactly one line, got {len(ours)}. The wheel takes that line's "
            "place. Restore the file."
        )
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "wheel", "--quiet", "--no-deps", "--wheel-dir", folder]
        done = subprocess.run([*command, str(HERE.parent)], capture_output=True, text=True, check=False)
        built = list(Path(folder).glob("edvit_hf-*.whl"))
        if done.returncode or len(built) != 1:
            raise EDViTError(f"the wheel could not be built: {done.stderr.strip()[-2000:]}")
        wheel = space / built[0].name
        partial = wheel.with_name(wheel.name + PARTIAL_SUFFIX)
        shutil.copy2(built[0], partial)
    for old in space.glob("edvit_hf-*.whl"):
        old.unlink()
    partial.replace(wheel)
    lines[ours[0]] = f"./{wheel.name}[device]"
    partial = requirements.with_name(requirements.name + PARTIAL_SUFFIX)
    partial.write_text("\n".join(lines) + "\n", encoding="utf-8")
    partial.replace(requirements)
    return wheel


def main(arguments: list[str] | None = None) -> int:
    """The command line; returns the exit code."""
    parser = argparse.ArgumentParser(description="Fill the Space with a finished ensemble.")
    parser.add_argument("ensemble", type=Path, help="folder with manifest.json, as `edvit run` names it at its end")
    parser.add_argument("--space", type=Path, default=HERE, help="folder of the Space (default: the one of this file)")
    parser.add_argument(
        "--wheel", action="store_true", help="also build the library's wheel into it and name it in requirements.txt"
    )
    values = parser.parse_args(arguments)
    try:
        print(f"model: {assemble(values.ensemble, values.space)}")
        if values.wheel:
            print(f"wheel: {add_wheel(values.space)}")
    except EDViTError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
