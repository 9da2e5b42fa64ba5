# SPDX-License-Identifier: Apache-2.0
"""Serves an ensemble over HTTP, on FastAPI and uvicorn, with limits on everything that a stranger may send.

Comes in: a loaded runtime and a `ServeConfig`, then requests from anybody. Goes out: JSON answers, refusals, metrics,
a page. `serve` runs a server in this process; `create_app` is the application alone, for tests and other servers. What
needs the extra `serve` is imported when it is first touched; neither torch nor transformers is.
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.serving.app import create_app
    from edvit_hf.serving.limits import Limits, ServeConfig
    from edvit_hf.serving.server import serve
    from edvit_hf.serving.service import Service

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {"limits": ("Limits", "ServeConfig"), "app": ("create_app",), "service": ("Service",), "server": ("serve",)},
    needs=("Serving an ensemble", "serve"),
)
