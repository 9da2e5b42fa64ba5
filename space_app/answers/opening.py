# SPDX-License-Identifier: Apache-2.0
"""Opens an ensemble once for all visitors who ask, and fetches one from the Hub within bounds, never its code.

The Hub is asked without any token: what only the owner of this Space may read must not be shown to its visitors.
"""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from answers.runtimes import VisitorError
from answers.turns import Places
from edvit_hf.errors import EDViTError, HubError, ManifestError, MissingExtraError, OverloadedError
from edvit_hf.hub.client import UnreachableError, ask, connect, fetch_file, read_file
from edvit_hf.hub.pulling import pull
from edvit_hf.hub.selection import select_by_profile
from edvit_hf.hub.source import is_hub_id
from edvit_hf.manifest import MANIFEST_NAME, Manifest
from edvit_hf.storage import MIB

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

Item = TypeVar("Item")

MAX_BYTES = 256 * MIB
"""Largest sum of the files an ensemble needs here, by its manifest and the Hub; checked before anything is sent."""
MAX_SMALL_BYTES = 2 * MIB
"""Largest size of the manifest, and of each file that the page reads beside the graphs."""
BESIDE = ("config.json", "results.json", "README.md")
"""Files that are read where a repository has them: sizes, accuracy, the card."""
WEIGHTS = "model.safetensors"
_PREFIXES = ("https://huggingface.co/", "http://huggingface.co/", "huggingface.co/", "https://hf.co/", "hf.co/")
TRIES = 2
"""Tries of each question to the Hub: a visitor who waits is told soon, and can try again."""
_OTHERS_OPEN = "Others open ensembles at this moment. Try again in a minute."
_HIDDEN = (401, 403, 404)
_ANONYMOUS: Any = False  # what the client takes for "no token, not even a stored one"


class OpenedOnce(Generic[Item]):
    """What is open, by name, and what is being opened; safe to call from several threads."""

    def __init__(
        self,
        *,
        max_named: int,
        max_opening: int,
        seconds: float,
        max_each: int = 2,
        max_waiting: int = 6,
        max_waiting_each: int = 2,
        is_usable: Callable[[Item], bool] = lambda _: True,
    ) -> None:
        """Begin with nothing.

        Args:
            max_named: Those that visitors named which are kept; the one that was asked for longest ago goes first.
            max_opening: Of those, how many are opened at a time; whoever asks for one more is told to try again.
            seconds: A visitor waits no longer; what was begun goes on, and is there at the next try.
            max_each: Of those that are kept, how many one visitor may have brought.
            max_waiting: How many wait for those that visitors named, at most; the places of others stay free.
            max_waiting_each: Of those, how many of one visitor.
            is_usable: Whether one can be asked still; else it counts as closed.
        """
        self._max_named, self._max_opening, self._seconds = max_named, max_opening, seconds
        self._max_each, self._is_usable = max_each, is_usable
        self._waiting = Places(max_waiting, max_waiting_each)
        self._lock = threading.RLock()
        self._bundled: dict[str, Item] = {}
        self._named: OrderedDict[str, Item] = OrderedDict()
        self._brought: dict[str, str | None] = {}  # who named it first, of those named or being opened
        self._opening: dict[str, Future[Item]] = {}

    def get(self, key: str, load: Callable[[], Item], *, is_bundle: bool, visitor: str | None = None) -> Item:
        """What is open under that key, or what `load` opens on a thread of its own, once for all who ask.

        A `visitor`, which is an address, has one opened at a time.
        """
        found = self.find(key)
        if found is not None:
            return found
        if is_bundle:
            return self._wait(key, load, is_bundle=True, visitor=None)
        try:
            with self._waiting.hold(visitor):
                return self._wait(key, load, is_bundle=False, visitor=visitor)
        except OverloadedError as error:
            raise VisitorError(_OTHERS_OPEN) from error

    def _wait(self, key: str, load: Callable[[], Item], *, is_bundle: bool, visitor: str | None) -> Item:
        with self._lock:
            found = self.find(key)
            if found is not None:
                return found
            opening = self._opening.get(key)
            if opening is None:
                if not is_bundle:
                    self._check_places(visitor)
                    self._brought[key] = visitor
                opening = self._opening[key] = Future()
                threading.Thread(
                    target=self._open, args=(key, load, opening), kwargs={"is_bundle": is_bundle}, daemon=True
                ).start()
        try:
            return opening.result(self._seconds)
        except TimeoutError as error:
            if opening.done():
                raise  # not the wait, but the loading says so
            raise VisitorError(
                f"Opening this ensemble takes longer than {self._seconds:.0f} s. It goes on: try again in a minute."
            ) from error

    def find(self, key: str) -> Item | None:
        """What is open under that key; None where it is not, or not any more."""
        with self._lock:
            if key in self._named:
                if not self._is_usable(self._named[key]):
                    self._forget(key)
                    return None
                self._named.move_to_end(key)
            return self._bundled.get(key) or self._named.get(key)

    def clear(self) -> None:
        """Forget everything that is open: for tests."""
        with self._lock:
            self._bundled.clear()
            for key in list(self._named):
                self._forget(key)

    def _check_places(self, visitor: str | None) -> None:
        opening = [self._brought[key] for key in self._opening if key in self._brought]
        if visitor is not None and visitor in opening:
            raise VisitorError(
                "An ensemble is being opened for you, or for somebody at your address. Wait until it is there."
            )
        if len(opening) >= self._max_opening:
            raise VisitorError(_OTHERS_OPEN)

    def _open(self, key: str, load: Callable[[], Item], opening: "Future[Item]", *, is_bundle: bool) -> None:
        try:
            opened = load()
        except EDViTError as error:
            self._failed(key)
            opening.set_exception(error)
        except BaseException as error:  # whoever waits gets a sentence; the page must live on
            logger.exception("could not open %s", key)
            self._failed(key)
            failed = VisitorError("This ensemble cannot be opened here. Choose another one.")
            failed.__cause__ = error
            opening.set_exception(failed)
        else:
            with self._lock:
                (self._bundled if is_bundle else self._named)[key] = opened
                self._make_room(self._brought.get(key))
                del self._opening[key]
            opening.set_result(opened)

    def _failed(self, key: str) -> None:
        with self._lock:
            del self._opening[key]
            self._brought.pop(key, None)

    def _make_room(self, visitor: str | None) -> None:
        """Forget the oldest of a visitor who has brought too many, then the oldest of all."""
        own = [key for key in self._named if visitor is not None and self._brought.get(key) == visitor]
        for key in own[: max(0, len(own) - self._max_each)]:
            self._forget(key)
        while len(self._named) > self._max_named:
            self._forget(next(iter(self._named)))

    def _forget(self, key: str) -> None:
        # Not closed: a visitor may be in the middle of it. Its threads or its process end when nobody holds it.
        del self._named[key]
        self._brought.pop(key, None)


def hub_id_of(text: str) -> str | None:
    """The id in what was pasted, an id itself or the address of a repository's page; None where it is neither."""
    text = text.strip()
    for prefix in _PREFIXES:
        text = text.removeprefix(prefix)
    text = text.removesuffix("/")
    return text if is_hub_id(text) else None


def fetch_ensemble(repo: str, folder: Path) -> bool:
    """Fetch what is needed of one commit of a repository into a folder that does not exist yet.

    Returns:
        `bool`: Whether the repository also holds weights and a config, so that Transformers can load it.

    Raises:
        VisitorError: A sentence for the visitor.
    """
    try:
        return _fetch(repo, folder)
    except VisitorError:
        raise
    except EDViTError as error:
        logger.info("could not open %s: %s", repo, error)
        raise VisitorError(_said(repo, error)) from error


def _fetch(repo: str, folder: Path) -> bool:
    api = connect(_ANONYMOUS)
    try:
        info = ask("reading the repository", repo, lambda: api.model_info(repo), tries=TRIES)
    except HubError as error:
        if error.status in _HIDDEN:
            raise VisitorError(
                f"The Hub has no public repository named {repo}. Check the spelling; private ones cannot be opened "
                "here."
            ) from error
        raise
    commit = str(info.sha)
    sizes = _sizes(api, repo, commit, [MANIFEST_NAME, *BESIDE, WEIGHTS])
    if MANIFEST_NAME not in sizes:
        raise VisitorError(
            f"{repo} is on the Hub, but it is no ensemble of edvit_hf: it has no {MANIFEST_NAME}. Name one that was "
            "made with edvit_hf."
        )
    if sizes[MANIFEST_NAME] > MAX_SMALL_BYTES:
        raise ManifestError(f"the manifest of {repo} has {sizes[MANIFEST_NAME]} bytes")
    text = read_file(api, repo, MANIFEST_NAME, commit, most=MAX_SMALL_BYTES)
    manifest = Manifest.from_json(text.decode("utf-8", "replace"), source=f"{repo}/{MANIFEST_NAME}")
    indices = range(len(manifest.sub_models))
    needed = select_by_profile(manifest, indices, profile=None, precision="fp32", fusion=True).files
    _check_size(repo, sum(each.bytes for each in needed))
    found = _sizes(api, repo, commit, [each.file for each in needed])
    if len(found) != len(needed):
        raise ManifestError(f"{repo} lacks files that its manifest lists: {len(needed)} needed, {len(found)} found")
    _check_size(repo, sum(found.values()))  # the manifest is the repository's own word: what the Hub would send counts
    pull(repo, sub_models=indices, precision="fp32", fusion=True, revision=commit, output=folder, token=_ANONYMOUS)
    for name in BESIDE:
        if sizes.get(name, MAX_SMALL_BYTES + 1) <= MAX_SMALL_BYTES:
            fetch_file(api, repo, name, commit, folder, most=MAX_SMALL_BYTES)
    return {"config.json", WEIGHTS} <= set(sizes)


def _sizes(api: "HfApi", repo: str, commit: str, files: Sequence[str]) -> dict[str, int]:
    """Bytes of those of the files that the repository has."""
    infos = ask("reading sizes", repo, lambda: api.get_paths_info(repo, list(files), revision=commit), tries=TRIES)
    return {info.path: int(info.size) for info in infos if hasattr(info, "size")}


def _check_size(repo: str, size: int) -> None:
    if size > MAX_BYTES:
        raise VisitorError(
            f"{repo} needs {size / MIB:.0f} MiB, more than the {MAX_BYTES // MIB} MiB that this page fetches. Run "
            "it on a machine of your own: edvit space run."
        )


def _said(repo: str, error: EDViTError) -> str:
    """An error of the library in a visitor's words."""
    status = error.status if isinstance(error, HubError) else None
    if isinstance(error, MissingExtraError):
        return "This page was set up without the Hub's client, so it opens nothing from there. Choose another ensemble."
    if isinstance(error, UnreachableError):
        return "The Hub cannot be reached from here at this moment. Choose another ensemble, or try again later."
    if status is not None and status not in _HIDDEN:
        return "The Hub is busy or in trouble at this moment. Choose another ensemble, or try again later."
    return (
        f"{repo} cannot be opened: a file is missing or damaged, or another version of edvit_hf made it. Name another "
        "ensemble."
    )
