"""Packages whose names load when they are first touched, so that importing the package stays cheap."""

import importlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from edvit_hf.errors import named_extra


def lazy(
    package: str, owners: Mapping[str, Sequence[str]], *, needs: tuple[str, str] | None = None
) -> tuple[Callable[[str], Any], Callable[[], list[str]], list[str]]:
    """The `__getattr__`, `__dir__` and `__all__` of a package's `__init__`.

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
