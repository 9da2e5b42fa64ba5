"""The lines that load the ensemble on the page somewhere else: ready to copy, and run by the tests."""

import json
import shlex
from collections.abc import Mapping, Sequence

from edvit_hf.card_words import TASK_WORDS
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


def code_for(
    source: str, task: Task, *, example: str | None, sub_models: Sequence[int], is_for_transformers: bool
) -> Mapping[str, str]:
    """Heading -> code.

    Args:
        source: Hub id or folder.
        task: What it classifies.
        example: Path of a picture or sound, or a text, that is there; None: a name to replace.
        sub_models: Indices of its sub-models.
        is_for_transformers: Whether weights and config are there too, and not only the exported graphs.
    """
    given = _PLACEHOLDER[task] if example is None else example
    code = {RUNTIME: _runtime(source, given, sub_models)}
    if is_for_transformers:
        code[TRANSFORMERS] = _transformers(source, task)
    code[COMMANDS] = _commands(source, given)
    code[SERVER] = _server(source, task, given)
    return code


def _runtime(source: str, given: str, sub_models: Sequence[int]) -> str:
    lines = [
        "# pip install 'edvit_hf[device,hub]'",
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


def _commands(source: str, given: str) -> str:
    return "\n".join(
        [
            "# one answer, and what each device contributes",
            f"edvit predict {shlex.quote(source)} {shlex.quote(given)}",
            "# what one device of a fleet holds",
            f"edvit pull {shlex.quote(source)} --sub-model 0 --precision fp32 --output device_0",
        ]
    )


def _server(source: str, task: Task, given: str) -> str:
    body = json.dumps({"text": given}, ensure_ascii=False)
    asked = f"--json {shlex.quote(body)}" if task == "text-classification" else f"-F {shlex.quote(f'file=@{given}')}"
    return "\n".join(
        [
            "# pip install 'edvit_hf[device,hub,serve]'; listens on this machine alone",
            f"edvit serve {shlex.quote(source)}",
            "# in another shell",
            f"curl {asked} http://127.0.0.1:8000/predict",
        ]
    )


def _quoted(text: str) -> str:
    """A Python string literal in double quotes."""
    return json.dumps(text, ensure_ascii=False)
