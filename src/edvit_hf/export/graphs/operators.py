# SPDX-License-Identifier: Apache-2.0
"""torch's table of ONNX functions, read once for all graphs of this process.

torch's exporter reads the signatures of some 500 functions anew for every graph, which is a quarter of what a small
graph costs. They depend on the operator set alone.
"""

import contextlib
import copy
import functools
from collections.abc import Callable, Iterator
from typing import Any


@contextlib.contextmanager
def operators_read_once() -> Iterator[None]:
    """Within the block torch takes its table of an operator set from memory, once it was read there.

    The names are private to torch: where it has others, it reads its table as it always did.
    """
    with contextlib.ExitStack() as changes:
        with contextlib.suppress(ImportError, AttributeError, KeyError):
            from torch.onnx._internal.exporter._registration import ONNXRegistry

            former = ONNXRegistry.__dict__["from_torchlib"]
            tables = _tables(former.__func__, ONNXRegistry)
            setattr(ONNXRegistry, "from_torchlib", staticmethod(tables))  # noqa: B010
            changes.callback(setattr, ONNXRegistry, "from_torchlib", former)
        yield


@functools.cache
def _tables(read: Callable[..., Any], registry: type) -> Callable[..., Any]:
    """What reads the table of an operator set as `read` does, once."""
    kept = functools.cache(functools.partial(read, registry))

    def table(*arguments: Any, **options: Any) -> Any:
        found = copy.copy(kept(*arguments, **options))
        found.functions = {name: list(functions) for name, functions in found.functions.items()}
        return found  # its own: who asked may add functions

    return table
