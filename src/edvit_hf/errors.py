# SPDX-License-Identifier: Apache-2.0
"""The errors of this library, one base class and the few children that a caller can act on; and imports that may wait.

Comes in: what went wrong. Goes out: an exception whose message says what was expected, what came, why it matters and
what to do. Every room raises these. `named_extra` names what is not installed, `lazy` loads what is touched.
"""

import difflib
import importlib
import importlib.util
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

_OPTIONAL_PACKAGES = {
    **{"sklearn": "scikit-learn", "PIL": "pillow"},
    **{name: name for name in ("torch", "transformers", "safetensors", "huggingface_hub", "accelerate", "datasets")},
    **{name: name for name in ("evaluate", "tqdm", "psutil", "jinja2", "matplotlib", "scipy", "simpy")},
    **{name: name for name in ("optimum", "onnx", "onnxscript", "onnxslim", "gradio")},
    **{name: name for name in ("soundfile", "soxr", "tokenizers")},
    **{name: name for name in ("fastapi", "starlette", "pydantic", "uvicorn", "h11")},
    **{"python_multipart": "python-multipart", "prometheus_client": "prometheus-client"},
    **{"grpc": "grpcio", "tritonclient": "tritonclient[grpc]", "rapidjson": "python-rapidjson", "ray": "ray"},
}
"""Import name -> package name of everything that only an extra installs."""


class EDViTError(Exception):
    """Base class of every error that `edvit_hf` raises on purpose."""


class RecipeError(EDViTError, ValueError):
    """A recipe holds a value that cannot be followed. Correct the recipe."""


class DataError(EDViTError, ValueError):
    """A dataset or an input (image, label, column) is not what was promised. Correct the data or its description."""


class BudgetError(EDViTError, ValueError):
    """No plan satisfies the fleet's budgets. Relax the budget that the message names.

    Attributes:
        nearest: What the budgets must be at least, all else unchanged: dotted name -> value, for example
            {"total_mib": 96.8} or {"devices.pi-3.memory_mib": 9.6}. Empty where it is not known.
    """

    def __init__(self, message: str, nearest: Mapping[str, float] | None = None) -> None:
        super().__init__(message)
        self.nearest = dict(nearest or {})


class PruningError(EDViTError, ValueError):
    """A model or a plan that cannot be pruned as asked. Correct the plan or the architecture table."""


class CheckpointError(EDViTError, ValueError):
    """Weights or a config on disk are damaged or do not belong together. Fetch or build them again."""


class TrainingError(EDViTError, RuntimeError):
    """Training cannot go on (for example a loss that is not finite). Change the training values."""


class ManifestError(EDViTError, ValueError):
    """A manifest or an exported folder breaks its contract. Export again, or use the version that wrote it."""


class ExportGateError(EDViTError):
    """An exported variant misses its own tolerance and was refused. Loosen the gate or change the export."""


class HubError(EDViTError, RuntimeError):
    """A push or pull that cannot be done: the folder is not ready, or the Hub or the connection refuses.

    Attributes:
        status: HTTP status of the Hub's refusal; None where there was none.
    """

    def __init__(self, message: str, *, status: int | None = None) -> None:
        super().__init__(message)
        self.status = status


class QuorumError(EDViTError, RuntimeError):
    """Too few sub-models answered well: what is left would be a guess. Bring devices back, or lower the quorum.

    Attributes:
        missing: Why each missing sub-model is missing, by index.
    """

    def __init__(self, message: str, missing: Mapping[int, str] | None = None) -> None:
        super().__init__(message)
        self.missing = dict(missing or {})


class OverloadedError(EDViTError, RuntimeError):
    """More requests than can be answered in time: this one was turned away early. Ask again later.

    Attributes:
        retry_after_ms: When that is likely to help.
    """

    def __init__(self, message: str, *, retry_after_ms: float) -> None:
        super().__init__(message)
        self.retry_after_ms = retry_after_ms


class DeadlineError(EDViTError, RuntimeError):
    """The fusion head did not answer in time, so there is no answer at all. Allow more time, or export it again."""


class WorkDirError(EDViTError, OSError):
    """The work directory cannot be written. Choose another one or free space."""


class MissingExtraError(EDViTError, ImportError):
    """An optional dependency is not installed. The message carries the install line."""

    def __init__(self, purpose: str, extra: str, *missing: str) -> None:
        named = " and ".join(f"`{package}`" for package in missing)
        what, which = ("packages", "which are") if len(missing) > 1 else ("package", "which is")
        super().__init__(
            f"{purpose} needs the {what} {named}, {which} not installed. "
            f"Install {'them' if len(missing) > 1 else 'it'} with: pip install 'edvit_hf[{extra}]'"
        )


def need(purpose: str, extra: str, *modules: str) -> None:
    """Name all packages that are missing at once, before anything is loaded.

    Args:
        purpose: What needs them, as the start of a sentence.
        extra: The extra, or several separated by commas, that installs them.
        modules: Names that they are imported by.

    Raises:
        MissingExtraError: Some are not installed.
    """
    missing = [_OPTIONAL_PACKAGES.get(name, name) for name in modules if importlib.util.find_spec(name) is None]
    if missing:
        raise MissingExtraError(purpose, extra, *missing)


@contextmanager
def named_extra(purpose: str, extra: str) -> Iterator[None]:
    """Turn a failed import of an optional package inside the block into the error that names the extra.

    Args:
        purpose: What needs the package, as the start of a sentence.
        extra: The extra, or several separated by commas, that installs everything the block imports.

    Raises:
        MissingExtraError: A package of an extra is not installed. Any other import error passes unchanged.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        package = _OPTIONAL_PACKAGES.get((error.name or "").partition(".")[0])
        if package is None:
            raise
        raise MissingExtraError(purpose, extra, package) from error


def lazy(
    package: str, owners: Mapping[str, Sequence[str]], *, needs: tuple[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package whose names load when they are first touched.

    An `if TYPE_CHECKING:` block beside the call imports the same names for type checkers; a test compares the two.

    Args:
        package: `__name__` of the package.
        owners: Module of the package -> the public names that it defines.
        needs: What needs an extra, and which (see `errors.named_extra`), where a module imports optional packages.

    Raises:
        AttributeError: From `__getattr__`: the package has no such name. `MissingExtraError`: the extra is missing.
    """
    module_of = {name: module for module, names in owners.items() for name in names}
    public = sorted(module_of)

    def load(name: str) -> Any:
        if name not in module_of:
            raise AttributeError(f"module {package!r} has no attribute {name!r}; public names: {', '.join(public)}")
        if needs is None:
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)
        with named_extra(*needs):
            return getattr(importlib.import_module(f"{package}.{module_of[name]}"), name)

    return load, lambda: list(public), public


def did_you_mean(name: str, valid: Iterable[str], prefix: str = "") -> str:
    """A sentence naming the valid name nearest to a misspelt one, with a leading space; empty if none is near."""
    near = difflib.get_close_matches(name, list(valid), n=1, cutoff=0.4)
    return f" Did you mean `{prefix}{near[0]}`?" if near else ""
