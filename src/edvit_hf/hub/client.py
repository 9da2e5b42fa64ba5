# SPDX-License-Identifier: Apache-2.0
"""The Hub's client, through which every download goes: it retries faults that pass and explains those that stay."""

import logging
import socket
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from edvit_hf.errors import EDViTError, HubError, named_extra
from edvit_hf.storage import MIB

if TYPE_CHECKING:
    from huggingface_hub import HfApi

logger = logging.getLogger(__name__)

MAX_TRIES = 5
TRIES_OF_TRANSFERS = 2  # the client itself tries these several times
LONGEST_SILENCE_S = 120.0  # without one byte in either direction; the Hub itself gives up earlier
LONGEST_WAIT_S = 300  # a server that asks for more is not waited for: the message says how long
_FIRST_WAIT_S = 1.0
_TRIES_OFFLINE = 2  # more where nobody can be connected to: without a network the message comes within seconds
MAX_SMALL_BYTES = 64 * MIB  # of configs, cards and whatever else holds no weights
_WEIGHTS = (".safetensors", ".onnx")
_PASSING = (408, 429, 500, 502, 503, 504)
CONFLICT = (409, 412)  # another commit came first

_Value = TypeVar("_Value")


class UnreachableError(HubError):
    """The Hub did not answer at all, or the network is switched off: what was fetched before may serve."""


def connect(token: str | None = None, endpoint: str | None = None) -> "HfApi":
    """The Hub's client.

    Without `token` it takes HF_TOKEN, or the one that `hf auth login` stored; without `endpoint` HF_ENDPOINT, or the
    Hub.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        UnreachableError: The network is switched off by HF_HUB_OFFLINE.
        HubError: The token holds what no token can; the message does not show it, as the client's own would.
    """
    if token and not (token.isascii() and token.isprintable() and " " not in token):
        raise HubError(
            "Expected a token, got a text with spaces, line breaks or letters that no token has. It was not sent. Copy "
            "it again, all of it and nothing else."
        )
    with named_extra("Reaching the Hub", "hub"):
        from huggingface_hub import HfApi, constants
    if constants.is_offline_mode():
        raise UnreachableError(
            "Expected to reach the Hub, but HF_HUB_OFFLINE (or TRANSFORMERS_OFFLINE) is set, so nothing can be sent or "
            "fetched. Unset it, or name a local folder."
        )
    return HfApi(endpoint=endpoint, token=token, library_name="edvit_hf")


def ask(doing: str, repo: str, call: Callable[[], _Value], *, tries: int = MAX_TRIES) -> _Value:
    """Call the Hub; tries again after a fault that passes, as long as the server asks to wait (`Retry-After`).

    The client itself does this for uploads and downloads only, not for reading or writing a repository's state. `doing`
    and `repo` say in messages what is tried, after "while", and where.

    Raises:
        HubError: For any fault of the Hub or of the connection that stays.
    """
    for attempt in range(1, tries + 1):
        try:
            with plain_hub_errors(doing, repo):
                _limit_silence()
                return call()
        except HubError as error:
            wait = _wait_before_retry(error.__cause__, attempt)
            if wait is None or attempt == tries:
                raise
            logger.warning("hub: %s; trying again in %.0f s", _first_line(error.__cause__), wait)
            time.sleep(wait)
    raise AssertionError("unreachable")


@contextmanager
def plain_hub_errors(doing: str, repo: str) -> Iterator[None]:
    """Turn every error of the client inside the block into a `HubError` that says what to do."""
    from huggingface_hub.utils import httpx

    try:
        yield
    except (OSError, ValueError, RuntimeError, httpx.HTTPError) as error:  # the client's errors are all of these
        if isinstance(error, EDViTError) or _is_of_this_machine(error):
            raise
        kind = UnreachableError if _is_unreachable(error) else HubError
        raise kind(f"While {doing}: {_explained(error, repo)}", status=status_of(error)) from error


def reach(api: "HfApi", repo: str) -> None:
    """Find out quickly whether there is a Hub: the client tries some requests for half a minute.

    Raises:
        HubError: It cannot be reached.
    """
    from huggingface_hub import get_session

    ask("reaching the Hub", repo, lambda: get_session().head(api.endpoint, timeout=LONGEST_SILENCE_S))


def status_of(error: BaseException | None) -> int | None:
    """HTTP status behind an error, however deep the client wrapped it."""
    for each in _chain(error):
        response = getattr(each, "response", None)
        if response is not None and isinstance(getattr(response, "status_code", None), int):
            return int(response.status_code)
    return None


def fetch_file(
    api: "HfApi",
    repo: str,
    file: str,
    revision: str,
    folder: Path,
    *,
    most: int,
    again: bool = False,
    repo_type: str = "model",
) -> Path:
    """Download one file of one commit below `folder`; what was there is fetched anew only with `again`.

    Raises:
        HubError: The Hub says that it has more than `most` bytes, before one is fetched, or sends more than it said.
    """
    bar = _limited_bar(repo, file, most)

    def download() -> Path:
        found = api.hf_hub_download(
            repo, file, revision=revision, local_dir=folder, force_download=again, repo_type=repo_type, tqdm_class=bar
        )
        return Path(found)

    return ask(f"fetching {file}", repo, download, tries=TRIES_OF_TRANSFERS)


def fetch_matching(repo: str, patterns: Sequence[str], revision: str | None = None) -> Path:
    """Those files of one commit whose names match, in a folder of the Hub's ordinary cache; what lacks is left out.

    The folder may hold more, from an earlier download. Without a connection it is what was fetched before.

    Raises:
        MissingExtraError: huggingface_hub is not installed.
        HubError: There is no such repository or revision, or it is neither here nor can be fetched.
    """
    with named_extra("Reaching the Hub", "hub"):
        from huggingface_hub import HfApi
    api, what = HfApi(library_name="edvit_hf"), ", ".join(patterns[:2])

    sizes: dict[str, int] = {}

    def download() -> Path:
        try:
            for file in api.snapshot_download(repo, revision=revision, allow_patterns=list(patterns), dry_run=True):
                if not file.filename.endswith(_WEIGHTS):
                    sizes[file.filename] = file.file_size or 0
        except Exception as error:
            if status_of(error) is not None:
                raise
            # without an answer the cache may help
        for name, size in sizes.items():
            if size > MAX_SMALL_BYTES:
                raise _too_long(repo, name, MAX_SMALL_BYTES, size)
        return Path(api.snapshot_download(repo, revision=revision, allow_patterns=list(patterns)))

    return ask(f"fetching {what}", repo, download, tries=TRIES_OF_TRANSFERS)


def read_file(
    api: "HfApi", repo: str, file: str, revision: str, *, most: int = MAX_SMALL_BYTES, repo_type: str = "model"
) -> bytes:
    """The bytes of one small file of one commit; nothing of it stays on disk. For `most` see `fetch_file`."""
    with tempfile.TemporaryDirectory() as folder:
        return fetch_file(api, repo, file, revision, Path(folder), most=most, repo_type=repo_type).read_bytes()


def _limited_bar(repo: str, file: str, most: int) -> Any:
    """The client's progress bar, which it tells how long a file is and of every piece, and which can refuse both."""
    from huggingface_hub.utils import tqdm

    class LimitedBar(tqdm):
        fetched = 0

        def __init__(self, *args: Any, **options: Any) -> None:
            if (options.get("total") or 0) > most:
                raise _too_long(repo, file, most, options["total"])
            super().__init__(*args, **options)

        def update(self, n: float | None = 1) -> bool | None:
            self.fetched += int(n or 0)
            if self.fetched > most:
                raise _too_long(repo, file, most, None)
            return super().update(n)

    return LimitedBar


def _too_long(repo: str, file: str, most: int, size: int | None) -> HubError:
    got = "more, and more than the Hub said" if size is None else f"{size}"
    return HubError(
        f"Expected at most {most} bytes of {file} from {repo}, got {got}. It is not what it should be and could fill "
        "memory or disk, so it was not fetched. Its owner has to push the ensemble again."
    )


def commit_of(api: "HfApi", repo: str, revision: str | None) -> str:
    """The commit that a branch, a tag or a commit's name stands for now."""
    return str(ask("reading the repository", repo, lambda: api.model_info(repo, revision=revision)).sha)


def _wait_before_retry(error: BaseException | None, attempt: int) -> float | None:
    """Seconds to wait before the next try; None if another try cannot help."""
    status = status_of(error)
    if status is None and attempt > _TRIES_OFFLINE and _is_offline(error):
        return None
    if status is None:
        return _FIRST_WAIT_S * 2 ** (attempt - 1) if _is_connection(error) else None
    if status not in _PASSING:
        return None
    asked = _asked_to_wait(error)
    if asked is not None and asked > LONGEST_WAIT_S:
        return None
    return _FIRST_WAIT_S * 2 ** (attempt - 1) if asked is None else asked


def _asked_to_wait(error: BaseException | None) -> float | None:
    from huggingface_hub.utils import parse_ratelimit_headers

    for each in _chain(error):
        headers = getattr(getattr(each, "response", None), "headers", None)
        if headers is None:
            continue
        limit = parse_ratelimit_headers(headers)
        if limit is not None and limit.remaining == 0:
            return float(limit.reset_in_seconds)
        value = str(headers.get("Retry-After") or "").strip()
        return float(value) if value.isdigit() else None
    return None


def _explained(error: BaseException, repo: str) -> str:
    """What went wrong and what to do."""
    from huggingface_hub import errors

    chain, status = list(_chain(error)), status_of(error)
    said = _first_line(next((e for e in chain if getattr(e, "server_message", None)), error))

    def is_any(*kinds: type[BaseException]) -> bool:
        return any(isinstance(each, kinds) for each in chain)

    if is_any(errors.GatedRepoError):
        return f"{repo} is gated ({said}). Ask its owner for access on its page, then run this again."
    if status == 401 and not is_any(errors.RepositoryNotFoundError):
        return (
            f"the Hub does not accept the token ({said}). It is mistyped, expired or was withdrawn, so nothing was "
            "done. Log in anew with `hf auth login --force`, or set HF_TOKEN to a valid one."
        )
    if is_any(errors.RepositoryNotFoundError):
        return (
            f"the Hub knows no repository {repo!r}, or the token may not see it. Without it there is nothing to read "
            "or write. Check the name; for a private one log in with `hf auth login`."
        )
    if is_any(errors.RevisionNotFoundError):
        return f"{repo} has no such revision ({said}). Name a branch, a tag or a commit that exists."
    if is_any(errors.RemoteEntryNotFoundError):
        return f"{repo} lacks a file ({said}). It is incomplete or no ensemble. Its owner has to push it again."
    if status == 403:
        return (
            f"the token may not do this ({said}). Nothing was changed. Use one with that right on {repo} "
            "(https://huggingface.co/settings/tokens)."
        )
    if status == 429:
        wait = _asked_to_wait(error)
        when = "later" if wait is None else f"in {wait:.0f} s"
        return f"the Hub refuses more requests for now ({said}). Nothing is lost: run this again {when}."
    if status in CONFLICT:
        return f"another commit came first ({said}). Nothing was overwritten. Run this again."
    if status is not None and status >= 500:
        return f"the Hub is in trouble (status {status}: {said}). Nothing half-done is left. Run this again later."
    if _is_unreachable(error):
        return f"the connection failed ({said}). Nothing half-done is left. Check the network and run this again."
    return f"{said}. Nothing half-done is left. Correct what it names."


def _limit_silence() -> None:
    """Give the client's requests that would wait for ever a limit.

    That is most of them: it limits the waits of downloads alone, and has no setting for the others. The session is
    the client's own and may be a new one after a fault, hence again before each call.
    """
    from huggingface_hub import get_session

    hooks = get_session().event_hooks["request"]
    if _with_limit not in hooks:
        hooks.append(_with_limit)


def _with_limit(request: Any) -> None:
    limits = request.extensions.get("timeout") or {}
    if not any(limits.values()):
        request.extensions["timeout"] = dict.fromkeys(("connect", "read", "write", "pool"), LONGEST_SILENCE_S)


def _is_unreachable(error: BaseException) -> bool:
    """Whether no answer came, as opposed to one that refuses."""
    from huggingface_hub.errors import LocalEntryNotFoundError

    return status_of(error) is None and (_is_connection(error) or isinstance(error, LocalEntryNotFoundError))


def _is_offline(error: BaseException | None) -> bool:
    """Whether no connection came about at all: no network, no such name, nobody listening."""
    from huggingface_hub.utils import httpx

    nobody = (httpx.ConnectError, ConnectionRefusedError, socket.gaierror)
    return any(isinstance(each, nobody) or "ConnectError" in str(each) for each in _chain(error))


def _is_connection(error: BaseException | None) -> bool:
    from huggingface_hub.utils import httpx

    return any(
        isinstance(each, httpx.TransportError) or "Consistency check failed" in str(each) for each in _chain(error)
    )


def _is_of_this_machine(error: BaseException) -> bool:
    """Whether the disk, not the Hub, is at fault."""
    from huggingface_hub.utils import httpx

    return (
        isinstance(error, OSError)
        and error.errno is not None
        and not isinstance(error, ConnectionError | TimeoutError)
        and not any(isinstance(each, httpx.HTTPError) for each in _chain(error))
    )


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """An error and what it was raised from, outermost first."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def _first_line(error: BaseException | None) -> str:
    said: Any = getattr(error, "server_message", None) or str(error) or type(error).__name__
    lines = [line.strip() for line in str(said).splitlines() if line.strip()]
    return (lines[0] if lines else type(error).__name__).rstrip(".")
