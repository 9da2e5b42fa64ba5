"""`edvit serve`: an ensemble over HTTP, on FastAPI and uvicorn, with limits on everything that a stranger may send.

Light: neither torch nor transformers. `serve` runs a server in this process; `create_app` is the application alone, for
tests and for other servers. What needs the extra `serve` is imported when it is first touched.
"""

import importlib
from typing import TYPE_CHECKING, Any

from edvit_hf.errors import named_extra
from edvit_hf.serving.limits import Limits, ServeConfig

if TYPE_CHECKING:
    from edvit_hf.serving.app import create_app
    from edvit_hf.serving.server import serve
    from edvit_hf.serving.service import Service

_LAZY = {"create_app": "app", "Service": "service", "serve": "server"}

__all__ = ["Limits", "ServeConfig", "Service", "create_app", "serve"]


def __getattr__(name: str) -> Any:
    if name not in _LAZY:
        raise AttributeError(f"module 'edvit_hf.serving' has no attribute {name!r}; it has: {', '.join(__all__)}")
    with named_extra("Serving an ensemble", "serve"):
        return getattr(importlib.import_module(f"edvit_hf.serving.{_LAZY[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
