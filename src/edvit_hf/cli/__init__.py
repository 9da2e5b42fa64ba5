"""`edvit`: thin commands over the library's functions. The order of the imports is that of `--help`."""

import os

from edvit_hf.cli.app import app
from edvit_hf.cli.output import checked_output

from edvit_hf.cli import trip  # isort: skip
from edvit_hf.cli import exporting  # isort: skip
from edvit_hf.cli import hub  # isort: skip
from edvit_hf.cli import measure  # isort: skip
from edvit_hf.cli import serve  # isort: skip
from edvit_hf.cli import bench  # isort: skip
from edvit_hf.cli import card  # isort: skip
from edvit_hf.cli import space  # isort: skip
from edvit_hf.cli import machine  # isort: skip

__all__ = ["app", "main"]


def main() -> None:
    """Entry point of the console script."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with checked_output():
        app()
