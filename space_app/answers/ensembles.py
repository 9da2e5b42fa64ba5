# SPDX-License-Identifier: Apache-2.0
"""The ensembles that the page offers: those bundled with it, one of its owner's, and any that a visitor names.

Bundled ones lie in `model/<name>/`, their examples in `examples/<name>/`.

Visitors share what is open. Bundles stay; of those that visitors named, the last few are kept, and one that nobody
uses any more is freed with its threads. Nothing is written outside temporary folders, and no code of a repository runs.
"""

import contextlib
import logging
import os
import re
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from answers.digit_form import FORM_SIDES
from answers.documents import (
    AbsentAccuracy,
    Example,
    absent_rows,
    credits_of,
    load_examples,
    models_of,
    read_card,
    read_results,
)
from answers.opening import OpenedOnce, VisitorError, fetch_ensemble, hub_id_of
from answers.snippets import EnsembleSource, code_for, place_in_space
from answers.timelines import FleetPlan, fleet_plans
from answers.views import Device, Model
from edvit_hf.errors import EDViTError, MissingExtraError, QuorumError
from edvit_hf.hub.selection import select_by_profile
from edvit_hf.manifest import MANIFEST_NAME, Manifest
from edvit_hf.published.files import Published, read_published
from edvit_hf.runtime import CoordinatorConfig, EDViTRuntime, LocalEngine
from edvit_hf.runtime.inputs import probe_inputs
from edvit_hf.tasks import Task
from edvit_hf.transforms import ImageTransform

logger = logging.getLogger(__name__)

HERE = Path(__file__).resolve().parents[1]
MODEL_DIR = HERE / "model"
EXAMPLES_DIR = HERE / "examples"
OWN_VARIABLE = "EDVIT_SPACE_ENSEMBLE"
"""Folder or Hub id of an ensemble that the page's owner puts first; `edvit space run DIR` sets it."""
OWN = "own"
"""Its name among the bundles."""
SPACE_VARIABLE = "SPACE_ID"
"""Set where the page runs as a Space of the Hub: there visitors name no folders."""

OPEN_SECONDS, MAX_OPENING, MAX_NAMED = 90.0, 2, 4
"""See `OpenedOnce`: how long a visitor waits, how many are fetched at a time, and how many stay open."""
MAX_INPUT_VALUES = 4_000_000
"""Largest number of values in one prepared input: more would let one visitor fill the memory."""
# Nobody waits for a stuck sub-model for ever, and a line that is longer than this deadline is not joined.
CONFIG = CoordinatorConfig(deadline_ms=20_000, max_queued=32)

_TEN_DIGITS = tuple("0123456789")
_BUNDLE_NAME = re.compile(r"[a-z0-9_]{1,64}")  # as `edvit space bundle` takes them
_DRAW_HINT = "Draw a digit or upload a picture of one."
_TEXTS: Mapping[str, tuple[str, Task, str]] = {
    "digits": ("Handwritten digits", "image-classification", _DRAW_HINT),
    "spoken_digits": ("Spoken digits", "audio-classification", "Say a digit in English, or upload a recording of one."),
    "question_type": ("Type of a question", "text-classification", "Type a question in English."),
}
_LABELS: Mapping[str, str] = {  # what the data's names of classes mean, where they are no words
    "question_type": "The answer tells what is asked for: an abbreviation (ABBR), a description (DESC), "
    "a thing (ENTY), a person (HUM), a place (LOC) or a number (NUM)."
}
_HINTS: Mapping[Task, str] = {
    "image-classification": "Upload a picture.",
    "audio-classification": "Record or upload a sound.",
    "text-classification": "Type a text.",
}


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """An ensemble to choose from.

    Attributes:
        name: For `open_bundle`: the folder's, or "own" for that of the page's owner.
        title: For the page.
        task: What it classifies; None where the owner's could not be opened.
        hint: What to give it; or why it could not be opened.
    """

    name: str
    title: str
    task: Task | None
    hint: str


@dataclass(frozen=True, kw_only=True, eq=False)
class OpenEnsemble:
    """An ensemble that answers, and what the page says of it. Shared between visitors, never changed.

    Attributes:
        name: Of the bundle, or what the visitor named: `open_named` gives it again.
        title: For the page.
        task: What it classifies: the input widget follows it.
        hint: What to give it, and what its labels mean where they are no words.
        can_draw: Whether `prepare_drawing` takes drawings for it.
        hears_words: Whether it was trained on spoken words without silence around them.
        devices: One for each sub-model, "waiting".
        examples: To try.
        models: The comparison; see `Model`.
        code: Heading -> lines that load it elsewhere.
        card: As markdown; empty without one.
        license: As the card states it; empty where it states none that can be read.
        credits: As markdown, of the examples.
        absent: Accuracy by the number of devices absent.
        plans: Predictions by the name of the fleet; the first is the default.
        runtime: What answers.
        schedule: How it runs the sub-models: "in_turn" or "workers".
    """

    name: str
    title: str
    task: Task
    hint: str
    can_draw: bool
    hears_words: bool
    devices: tuple[Device, ...]
    examples: tuple[Example, ...]
    models: tuple[Model, ...]
    code: Mapping[str, str]
    card: str
    license: str
    credits: str
    absent: tuple[AbsentAccuracy, ...] = field(repr=False)
    plans: Mapping[str, FleetPlan] = field(repr=False)
    runtime: EDViTRuntime = field(repr=False)
    schedule: str = "in_turn"


openings: OpenedOnce[OpenEnsemble] = OpenedOnce(max_named=MAX_NAMED, max_opening=MAX_OPENING, seconds=OPEN_SECONDS)


def bundles(model_dir: Path | None = None) -> tuple[Bundle, ...]:
    """What there is to choose from: the owner's ensemble if there is one, then the bundled ones that are there."""
    folder = MODEL_DIR if model_dir is None else model_dir
    found = [
        Bundle(name=name, title=title, task=task, hint=hint)
        for name, (title, task, hint) in _TEXTS.items()
        if (folder / name / MANIFEST_NAME).is_file()
    ]
    found += [
        _other_bundle(path.parent) for path in sorted(folder.glob(f"*/{MANIFEST_NAME}")) if _is_other(path.parent)
    ]
    if os.environ.get(OWN_VARIABLE):
        try:
            own = open_bundle(OWN)
        except EDViTError as error:
            found.insert(0, Bundle(name=OWN, title=_own_title(), task=None, hint=str(error)))
        else:
            found.insert(0, Bundle(name=OWN, title=own.title, task=own.task, hint=own.hint))
    return tuple(found)


def open_bundle(name: str, model_dir: Path | None = None) -> OpenEnsemble:
    """One of `bundles()`, ready to answer: loaded and warmed up the first time, the same object after that.

    Raises:
        EDViTError: A sentence for the visitor: there is no such bundle, or it is incomplete or damaged.
    """
    if name == OWN:
        source = os.environ.get(OWN_VARIABLE, "")
        if not source:
            raise VisitorError("There is no ensemble of that name here. Choose one from the list.")
        load = partial(_open_source, source, name=OWN, may_be_folder=True)
        return openings.get(f"{OWN}:{source}", load, is_bundle=True)
    folder = (MODEL_DIR if model_dir is None else model_dir) / name
    if not _is_bundled(name, folder):
        raise VisitorError(
            "This ensemble is not here. Choose another one; in a checkout, `make space` makes those that are missing."
        )
    if name in _TEXTS:
        title, _, hint = _TEXTS[name]
        said: str | None = f"{hint} {_LABELS.get(name, '')}".strip()
    else:
        title, said = _title_of(folder), None
    load = partial(_load, folder, name=name, title=title, hint=said, examples_dir=EXAMPLES_DIR / name)
    return openings.get(str(folder), load, is_bundle=True)


def open_other(source: str) -> OpenEnsemble:
    """Any ensemble of edvit_hf: a public repository of the Hub, or where the page runs locally a folder.

    Raises:
        EDViTError: A sentence for the visitor.
    """
    text = source.strip() if isinstance(source, str) else ""
    is_local = not os.environ.get(SPACE_VARIABLE)
    if is_local and os.path.isdir(text):  # noqa: PTH112  (which does not mind a text longer than any name)
        text = str(Path(text).resolve())  # so that no folder shares its name with a bundle
    elif _is_bundled(text, MODEL_DIR / text):
        return open_bundle(text)
    load = partial(_open_source, text, name=text, may_be_folder=is_local)
    return openings.get(f"named:{text}", load, is_bundle=False)


def open_named(name: str) -> OpenEnsemble:
    """The ensemble of that `name`: a bundle, or what a visitor named while it is open, for fetching it anew takes long.

    Raises:
        EDViTError: A sentence for the visitor.
    """
    if name == OWN or name in _TEXTS or _is_bundled(name, MODEL_DIR / name):
        return open_bundle(name)
    found = openings.find(f"named:{name}")
    if found is None:
        raise VisitorError("This ensemble was closed, because others were opened since. Open it again by its name.")
    return found


def _is_bundled(name: str, folder: Path) -> bool:
    """Whether a bundle has that name: no path, and nothing that is only on the Hub."""
    return _BUNDLE_NAME.fullmatch(name) is not None and (folder / MANIFEST_NAME).is_file()


def _is_other(folder: Path) -> bool:
    """Whether a folder is a bundle that the page has no words of its own for."""
    return folder.name not in _TEXTS and _BUNDLE_NAME.fullmatch(folder.name) is not None


def _other_bundle(folder: Path) -> Bundle:
    """How a bundle is offered that the page has no words of its own for: the Space's owner put it there."""
    try:
        task = Manifest.load(folder).ensemble.task
    except EDViTError as error:
        logger.error("%s", error)
        return Bundle(name=folder.name, title=folder.name, task=None, hint="It is damaged and cannot be opened.")
    return Bundle(name=folder.name, title=_title_of(folder), task=task, hint=_HINTS[task])


def _title_of(folder: Path) -> str:
    """The recipe that made an ensemble, or the folder's name."""
    recipe = read_results(folder).get("recipe")
    return recipe if isinstance(recipe, str) and recipe.isprintable() and len(recipe) < 60 else folder.resolve().name


def _own_title() -> str:
    source = os.environ.get(OWN_VARIABLE, "")
    return Path(source).name or source


def _open_source(text: str, *, name: str, may_be_folder: bool) -> OpenEnsemble:
    """A folder where that is allowed, else a repository of the Hub."""
    example = "Name an ensemble as OWNER/NAME, as it stands on the Hub" + (", or a folder." if may_be_folder else ".")
    if not text or len(text) > 1000 or not text.isprintable():
        raise VisitorError(f"There is no name to look for. {example}")
    if may_be_folder and os.path.isdir(text):  # noqa: PTH112  (which does not mind a text longer than any name)
        return _open_folder(Path(text), name=name)
    repo = hub_id_of(text)
    if repo is None:
        raise VisitorError(
            f"That is neither a name on the Hub{' nor a folder here' if may_be_folder else ''}. {example}"
        )
    with tempfile.TemporaryDirectory(prefix="edvit_space_") as temporary:
        folder = Path(temporary) / "ensemble"
        is_for_transformers = fetch_ensemble(repo, folder)
        return _load(folder, name=name, title=repo, hint=None, repo=repo, is_for_transformers=is_for_transformers)


def _open_folder(folder: Path, *, name: str) -> OpenEnsemble:
    if not (folder / MANIFEST_NAME).is_file():
        raise VisitorError(
            f"The folder {folder.name} holds no ensemble: there is no {MANIFEST_NAME} in it. Name the folder that "
            "`edvit run` or `edvit export` made."
        )
    is_for_transformers = all((folder / file).is_file() for file in ("config.json", "model.safetensors"))
    return _load(folder, name=name, title=_title_of(folder), hint=None, is_for_transformers=is_for_transformers)


def _load(
    folder: Path,
    *,
    name: str,
    title: str,
    hint: str | None,
    repo: str | None = None,
    examples_dir: Path | None = None,
    is_for_transformers: bool = False,
) -> OpenEnsemble:
    """Open the files of a folder; afterwards it is not needed any more. Bundles alone have `examples_dir`."""
    runtime = _runtime(folder, title)
    manifest = runtime.manifest
    results = read_results(folder)
    examples = () if examples_dir is None else load_examples(examples_dir, runtime.task)
    plans = fleet_plans(_published(folder))
    card, license = read_card(folder)
    names, task = manifest.label_names, runtime.task
    is_digits = tuple(names) == _TEN_DIGITS
    size = runtime.transform.size if isinstance(runtime.transform, ImageTransform) else None
    can_draw = is_digits and size in {(side, side) for side in FORM_SIDES}
    engine = runtime.coordinator.engine
    return OpenEnsemble(
        name=name,
        title=title,
        task=task,
        hint=hint or (_DRAW_HINT if can_draw else _HINTS[task]),
        can_draw=can_draw,
        hears_words=is_digits and task == "audio-classification",
        examples=examples,
        card=card,
        license=license,
        devices=tuple(
            Device(index=entry.index, classes=tuple(names[label] for label in entry.class_group), state="waiting")
            for entry in manifest.sub_models
        ),
        models=models_of(results, manifest),
        absent=absent_rows(results, len(manifest.sub_models)),
        code=code_for(
            _place(folder, name, task, examples, repo=repo, is_bundle=examples_dir is not None),
            task,
            sub_models=range(len(manifest.sub_models)),
            is_for_transformers=is_for_transformers,
            can_pull=_can_pull(folder, manifest),
        ),
        credits=credits_of(examples_dir) if examples_dir is not None and examples else "",
        plans=plans,
        runtime=runtime,
        schedule=engine.schedule if isinstance(engine, LocalEngine) else "in_turn",
    )


def _place(
    folder: Path, name: str, task: Task, examples: tuple[Example, ...], *, repo: str | None, is_bundle: bool
) -> EnsembleSource:
    """Where a visitor's own machine finds the ensemble: on the Hub, in this Space, or here, where the page runs."""
    example, space = examples[0].value if examples else None, os.environ.get(SPACE_VARIABLE)
    if repo is not None:
        return EnsembleSource(source=repo)
    if is_bundle and space:
        return place_in_space(space, name, task, example)
    return EnsembleSource(source=str(folder.resolve()), example=example)


def _can_pull(folder: Path, manifest: Manifest) -> bool:
    """Whether `edvit pull` would find all that a device needs of one sub-model."""
    try:
        needed = select_by_profile(manifest, [0], profile=None, precision="fp32").files
    except EDViTError as error:
        logger.info("nothing to pull from %s: %s", folder.name, error)
        return False
    return all((folder / each.file).is_file() for each in needed)


def _runtime(folder: Path, title: str) -> EDViTRuntime:
    """The ensemble on one thread, warmed up: the first run allocates, which must stay off the clock."""
    try:
        manifest = Manifest.load(folder)
        has_fp32 = all(any(v.precision == "fp32" for v in entry.variants) for entry in manifest.sub_models)
        missing = [
            entry for entry in manifest.sub_models if not any((folder / v.file).exists() for v in entry.variants)
        ]
        if missing or not any((folder / variant.file).exists() for variant in manifest.fusion.variants):
            raise VisitorError(
                f"{title} holds no ONNX files for all of its sub-models, so nothing here can run it. "
                "Export it with `edvit export`, or name another one."
            )
        runtime = EDViTRuntime.from_pretrained(
            folder, num_threads=1, schedule="in_turn", precision="fp32" if has_fp32 else "int8", config=CONFIG
        )
        shape = runtime.input_shape
        inputs = probe_inputs(runtime.task, shape)
        if sum(values.size for values in inputs.values()) > MAX_INPUT_VALUES:
            raise VisitorError(f"{title} takes inputs that are too large for this page. Name another ensemble.")
        runtime.predict(inputs)
        with contextlib.suppress(QuorumError):  # as every answer on the page is asked for
            runtime.predict_without(inputs, [(entry.index,) for entry in manifest.sub_models])
    except MissingExtraError as error:
        logger.error("%s", error)
        raise VisitorError(
            f"{title} needs a package that this page was set up without. Name another ensemble."
        ) from error
    except VisitorError:
        raise
    except EDViTError as error:
        logger.warning("could not open %s: %s", title, error)
        raise VisitorError(
            f"{title} is damaged, incomplete, or made by another version of edvit_hf. Export it again, or name another "
            "ensemble."
        ) from error
    return runtime


def _published(folder: Path) -> Published | None:
    """What its costs are told from; None where its files do not fit together."""
    try:
        return read_published(str(folder))
    except (EDViTError, OSError) as error:
        logger.info("no predictions for %s: %s", folder.name, error)
        return None
