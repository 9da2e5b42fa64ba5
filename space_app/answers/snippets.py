# SPDX-License-Identifier: Apache-2.0
"""The lines that load the ensemble on the page somewhere else: ready to copy, and run by the tests."""

import json
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from edvit_hf.card.words import TASK_WORDS
from edvit_hf.tasks import Task

RUNTIME, TRANSFORMERS, COMMANDS, SERVER = "Python, without torch", "Transformers", "Command line", "HTTP server"
_PLACEHOLDER: dict[Task, str] = {
    "image-classification": "photo.png",
    "audio-classification": "sound.wav",
    "text-classification": "some text",
}
_PROCESSOR: dict[Task, str] = {
    "image-classification": "AutoImageProcessor",
    "audio-classification": "AutoFeatureExtractor",
    "text-classification": "AutoTokenizer",
}


@dataclass(frozen=True, kw_only=True)
class EnsembleSource:
    """Where copied lines find an ensemble.

    Attributes:
        source: Hub id or folder.
        example: Path of a picture or sound, or a text, that is there; None: a name to replace.
        fetch: Shell command that brings both there first; None where that is not needed.
    """

    source: str
    example: str | None = None
    fetch: str | None = None


def place_in_space(space: str, name: str, task: Task, example: str | None) -> EnsembleSource:
    """A bundle of the Space with that id, which the visitor's machine has to fetch: `model/NAME`, and the example.

    Args:
        space: OWNER/NAME of the Space.
        name: Of the bundle.
        task: What it classifies.
        example: File of the page, or a text.
    """
    folder, wanted = space.rpartition("/")[2], [f"model/{name}/*"]
    if example is not None and task != "text-classification":
        file = f"examples/{name}/{Path(example).name}"
        wanted.append(file)
        example = f"{folder}/{file}"
    included = " ".join(f"--include {shlex.quote(pattern)}" for pattern in wanted)
    fetch = f"hf download {shlex.quote(space)} --repo-type space {included} --local-dir {shlex.quote(folder)}"
    return EnsembleSource(source=f"{folder}/model/{name}", example=example, fetch=fetch)


def code_for(
    place: EnsembleSource, task: Task, *, sub_models: Sequence[int], is_for_transformers: bool, can_pull: bool
) -> Mapping[str, str]:
    """Heading -> code.

    Args:
        place: Where the ensemble is, and an input for it.
        task: What it classifies.
        sub_models: Indices of its sub-models.
        is_for_transformers: Whether weights and config are there too, and not only the exported graphs.
        can_pull: Whether all that `edvit pull` fetches of one sub-model is there.
    """
    source, fetch = place.source, place.fetch
    given = _PLACEHOLDER[task] if place.example is None else place.example
    code = {RUNTIME: _runtime(source, given, sub_models, fetch)}
    if is_for_transformers:
        code[TRANSFORMERS] = _transformers(source, task)
    first = [] if fetch is None else [fetch]
    code[COMMANDS] = "\n".join(first + _commands(source, given, can_pull))
    code[SERVER] = "\n".join(first + _server(source, task, given))
    return code


def _runtime(source: str, given: str, sub_models: Sequence[int], fetch: str | None) -> str:
    lines = [
        "# pip install 'edvit_hf[device,hub]'",
        *([] if fetch is None else [f"# {fetch}"]),
        "from edvit_hf.runtime import EDViTRuntime",
        "",
        f"with EDViTRuntime.from_pretrained({_quoted(source)}) as ensemble:",
        f"    answer = ensemble({_quoted(given)})",
        '    print(answer.label, f"{answer.probabilities.max():.1%}")',
    ]
    if len(sub_models) > 1:
        lines += [
            f"    without = ensemble({_quoted(given)}, absent=[{sub_models[0]}])  # device {sub_models[0]} unplugged",
            "    print(without.label, without.missing_classes)",
        ]
    return "\n".join(lines)


def _transformers(source: str, task: Task) -> str:
    auto, processor = TASK_WORDS[task].auto_class, _PROCESSOR[task]
    return "\n".join(
        [
            "# pip install 'edvit_hf[torch]'",
            "import edvit_hf.auto  # registers the classes",
            f"from transformers import {auto}, {processor}",
            "",
            f"model = {auto}.from_pretrained({_quoted(source)})",
            f"processor = {processor}.from_pretrained({_quoted(source)})",
        ]
    )


def _commands(source: str, given: str, can_pull: bool) -> list[str]:
    lines = [
        "# one answer, and what each device contributes",
        f"edvit predict {shlex.quote(source)} {shlex.quote(given)}",
    ]
    if can_pull:
        lines += [
            "# what one device of a fleet holds",
            f"edvit pull {shlex.quote(source)} --sub-model 0 --precision fp32 --output device_0",
        ]
    return lines


def _server(source: str, task: Task, given: str) -> list[str]:
    body = json.dumps({"text": given}, ensure_ascii=False)
    asked = f"--json {shlex.quote(body)}" if task == "text-classification" else f"-F {shlex.quote(f'file=@{given}')}"
    return [
        "# pip install 'edvit_hf[device,hub,serve]'; listens on this machine alone",
        f"edvit serve {shlex.quote(source)}",
        "# in another shell",
        f"curl {asked} http://127.0.0.1:8000/predict",
    ]


def _quoted(text: str) -> str:
    """A Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)
