# SPDX-License-Identifier: Apache-2.0
"""The ensembles that the page offers: those bundled with it, one of its owner's, and any that a visitor names.

Bundled ones lie in `model/<name>/`, their examples in `examples/<name>/`.

Visitors share what is open. Bundles stay; of those that visitors named, the last few are kept, and one that nobody
uses any more is freed with its threads. Nothing is written outside temporary folders, and no code of a repository runs.
"""

import logging
import os
import re
import tempfile
import weakref
from collections.abc import Mapping
from functools import partial
from pathlib import Path

from answers import isolation
from answers.documents import (
    Example,
    absent_rows,
    credits_of,
    load_examples,
    models_of,
    read_card,
    read_results,
    verdict_of,
)
from answers.isolation import IsolatedEnsemble
from answers.knowledge import devices_of, joining_of
from answers.opened import Bundle, OpenEnsemble
from answers.opening import OpenedOnce, fetch_ensemble, hub_id_of
from answers.reading import side_of
from answers.runtimes import VisitorError, damaged, open_runtime, taker_of
from answers.snippets import EnsembleSource, code_for, place_in_space
from answers.timelines import fleet_plans
from edvit_hf.errors import EDViTError
from edvit_hf.hub.selection import select_by_profile
from edvit_hf.manifest import MANIFEST_NAME, Manifest
from edvit_hf.published.files import Published, read_published
from edvit_hf.runtime import EDViTRuntime, LocalEngine
from edvit_hf.tasks import Task

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

OPEN_SECONDS, MAX_OPENING, MAX_WAITING, MAX_NAMED, MAX_NAMED_EACH = 90.0, 3, 6, 4, 2
"""See `OpenedOnce`: how long a visitor waits, how many are fetched at a time, how many wait for them, and how many stay
open, in all and of one visitor."""
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


openings: OpenedOnce[OpenEnsemble] = OpenedOnce(
    max_named=MAX_NAMED,
    max_opening=MAX_OPENING,
    seconds=OPEN_SECONDS,
    max_each=MAX_NAMED_EACH,
    max_waiting=MAX_WAITING,
    is_usable=lambda opened: opened.is_alive,
)


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


def open_other(source: str, visitor: str | None = None) -> OpenEnsemble:
    """Any ensemble of edvit_hf: a public repository of the Hub, or where the page runs locally a folder.

    It runs in a process of its own where `isolation` is on. A `visitor`, whoever that is, has one opened at a time.

    Raises:
        EDViTError: A sentence for the visitor.
    """
    text = source.strip() if isinstance(source, str) else ""
    is_local = not os.environ.get(SPACE_VARIABLE)
    if is_local and os.path.isdir(text):  # noqa: PTH112  (which does not mind a text longer than any name)
        text = str(Path(text).resolve())  # so that no folder shares its name with a bundle
    elif _is_bundled(text, MODEL_DIR / text):
        return open_bundle(text)
    load = partial(_open_source, text, name=text, may_be_folder=is_local, is_strangers=True)
    return openings.get(f"named:{text}", load, is_bundle=False, visitor=visitor)


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


def _open_source(text: str, *, name: str, may_be_folder: bool, is_strangers: bool = False) -> OpenEnsemble:
    """A folder where that is allowed, else a repository of the Hub."""
    example = "Name an ensemble as OWNER/NAME, as it stands on the Hub" + (", or a folder." if may_be_folder else ".")
    if not text or len(text) > 1000 or not text.isprintable():
        raise VisitorError(f"There is no name to look for. {example}")
    if may_be_folder and os.path.isdir(text):  # noqa: PTH112  (which does not mind a text longer than any name)
        return _open_folder(Path(text), name=name, is_strangers=is_strangers)
    repo = hub_id_of(text)
    if repo is None:
        raise VisitorError(
            f"That is neither a name on the Hub{' nor a folder here' if may_be_folder else ''}. {example}"
        )
    temporary = tempfile.TemporaryDirectory(prefix="edvit_space_")
    try:
        folder = Path(temporary.name) / "ensemble"
        opened = _load(
            folder,
            name=name,
            title=repo,
            repo=repo,
            is_for_transformers=fetch_ensemble(repo, folder),
            is_strangers=is_strangers,
        )
    except BaseException:
        temporary.cleanup()
        raise
    if is_strangers:  # all of it is in memory
        temporary.cleanup()
    else:  # the processes that read files for it read its processor
        weakref.finalize(opened, temporary.cleanup)
    return opened


def _open_folder(folder: Path, *, name: str, is_strangers: bool) -> OpenEnsemble:
    if not (folder / MANIFEST_NAME).is_file():
        raise VisitorError(
            f"The folder {folder.name} holds no ensemble: there is no {MANIFEST_NAME} in it. Name the folder that "
            "`edvit run` or `edvit export` made."
        )
    is_for_transformers = all((folder / file).is_file() for file in ("config.json", "model.safetensors"))
    return _load(
        folder,
        name=name,
        title=_title_of(folder),
        hint=None,
        is_for_transformers=is_for_transformers,
        is_strangers=is_strangers,
    )


def _load(
    folder: Path,
    *,
    name: str,
    title: str,
    hint: str | None = None,
    repo: str | None = None,
    examples_dir: Path | None = None,
    is_for_transformers: bool = False,
    is_strangers: bool = False,
) -> OpenEnsemble:
    """Open the files of a folder; afterwards it is not needed any more. Bundles alone have `examples_dir`."""
    runtime: EDViTRuntime | IsolatedEnsemble
    if is_strangers and isolation.is_on():
        runtime = IsolatedEnsemble(folder, _manifest(folder, title), title)
        taker, can_draw, side = None, runtime.can_draw, runtime.side
    else:
        runtime = open_runtime(folder, title)
        taker = taker_of(runtime)
        can_draw, side = taker.can_draw, side_of(taker)
    manifest = runtime.manifest
    results = read_results(folder)
    examples = () if examples_dir is None else load_examples(examples_dir, runtime.task)
    plans = fleet_plans(_published(folder))
    card, license = read_card(folder)
    task = runtime.task
    engine = runtime.coordinator.engine if isinstance(runtime, EDViTRuntime) else None
    return OpenEnsemble(
        name=name,
        title=title,
        task=task,
        hint=hint or (_DRAW_HINT if can_draw else _HINTS[task]),
        can_draw=can_draw,
        side=side,
        taker=taker,
        folder=folder.resolve(),
        examples=examples,
        card=card,
        license=license,
        devices=devices_of(manifest),
        joined=joining_of(manifest),
        models=models_of(results, manifest),
        verdict=verdict_of(results),
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


def _manifest(folder: Path, title: str) -> Manifest:
    """Read and checked here too: what the page says of an ensemble of a stranger does not come from its process."""
    try:
        return Manifest.load(folder)
    except EDViTError as error:
        logger.warning("could not open %s: %s", title, error)
        raise damaged(title) from error


def _published(folder: Path) -> Published | None:
    """What its costs are told from; None where its files do not fit together."""
    try:
        return read_published(str(folder))
    except (EDViTError, OSError) as error:
        logger.info("no predictions for %s: %s", folder.name, error)
        return None
