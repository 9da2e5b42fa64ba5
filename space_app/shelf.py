"""What is open, shared between visitors: opened once for all who ask, bounded, and freed when nobody holds it."""

import logging
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from typing import Generic, TypeVar

from edvit_hf.errors import EDViTError
from fetching import SaidError

logger = logging.getLogger(__name__)

Item = TypeVar("Item")


class Shelf(Generic[Item]):
    """What is open, by name, and what is being opened; safe to call from several threads."""

    def __init__(self, *, max_named: int, max_opening: int, seconds: float) -> None:
        """Begin with nothing.

        Args:
            max_named: Those that visitors named which are kept; the one that was asked for longest ago goes first.
            max_opening: Of those, how many are opened at a time; whoever asks for one more is told to try again.
            seconds: A visitor waits no longer; what was begun goes on, and is there at the next try.
        """
        self._max_named, self._max_opening, self._seconds = max_named, max_opening, seconds
        self._lock = threading.RLock()
        self._bundled: dict[str, Item] = {}
        self._named: OrderedDict[str, Item] = OrderedDict()
        self._opening: dict[str, Future[Item]] = {}
        self._num_named = 0  # of those that are being opened

    def get(self, key: str, load: Callable[[], Item], *, is_bundle: bool) -> Item:
        """What is open under that key, or what `load` opens on a thread of its own, once for all who ask."""
        with self._lock:
            found = self.find(key)
            if found is not None:
                return found
            opening = self._opening.get(key)
            if opening is None:
                if not is_bundle and self._num_named >= self._max_opening:
                    raise SaidError("Others open ensembles at this moment. Try again in a minute.")
                self._num_named += not is_bundle
                opening = self._opening[key] = Future()
                threading.Thread(
                    target=self._open, args=(key, load, opening), kwargs={"is_bundle": is_bundle}, daemon=True
                ).start()
        try:
            return opening.result(self._seconds)
        except TimeoutError as error:
            if opening.done():
                raise  # not the wait, but the loading says so
            raise SaidError(
                f"Opening this ensemble takes longer than {self._seconds:.0f} s. It goes on: try again in a minute."
            ) from error

    def find(self, key: str) -> Item | None:
        """What is open under that key; None where it is not, or not any more."""
        with self._lock:
            if key in self._named:
                self._named.move_to_end(key)
            return self._bundled.get(key) or self._named.get(key)

    def clear(self) -> None:
        """Forget everything that is open: for tests."""
        with self._lock:
            self._bundled.clear()
            self._named.clear()

    def _open(self, key: str, load: Callable[[], Item], opening: "Future[Item]", *, is_bundle: bool) -> None:
        try:
            opened = load()
        except EDViTError as error:
            self._end(key, is_bundle=is_bundle)
            opening.set_exception(error)
        except BaseException as error:  # whoever waits gets a sentence; the page must live on
            logger.exception("could not open %s", key)
            self._end(key, is_bundle=is_bundle)
            failed = SaidError("This ensemble cannot be opened here. Choose another one.")
            failed.__cause__ = error
            opening.set_exception(failed)
        else:
            with self._lock:
                (self._bundled if is_bundle else self._named)[key] = opened
                while len(self._named) > self._max_named:
                    # Not closed: a visitor may be in the middle of it. Its threads end when nobody holds it.
                    self._named.popitem(last=False)
            self._end(key, is_bundle=is_bundle)
            opening.set_result(opened)

    def _end(self, key: str, *, is_bundle: bool) -> None:
        with self._lock:
            del self._opening[key]
            self._num_named -= not is_bundle
