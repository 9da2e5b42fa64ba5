# SPDX-License-Identifier: Apache-2.0
"""`optimum-cli export edvit`: found by Optimum in the namespace `optimum.commands.register` (PEP 420).

No folder on the way here holds an `__init__.py`, and this file imports nothing heavy: Optimum reads it
whenever its command line starts.
"""

import logging
import sys
from argparse import ArgumentParser
from pathlib import Path

from optimum.commands.base import BaseOptimumCLICommand, CommandInfo
from optimum.commands.export.base import ExportCommand


class EDViTExportCommand(BaseOptimumCLICommand):
    """Exports a saved ensemble to ONNX files with a manifest, in a new folder."""

    COMMAND = CommandInfo(name="edvit", help="Export an edvit_hf ensemble to ONNX, one file per sub-model.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the arguments."""
        parser.add_argument("-m", "--model", type=Path, required=True, help="Folder of a saved ensemble.")
        parser.add_argument("--profile", help="Hardware the int8 files are for; default: this machine's kind.")
        parser.add_argument("--opset", type=int, default=20, help="ONNX operator set (default: 20).")
        parser.add_argument("--no-int8", action="store_true", help="Write fp32 files only.")
        parser.add_argument("output", type=Path, help="Folder to create; it must not exist or be empty.")

    def run(self) -> None:
        """Copy the ensemble and export the copy; exits with status 1 and the reason if it is refused."""
        from edvit_hf.errors import EDViTError
        from edvit_hf.export import ExportConfig
        from edvit_hf.export.copy import export_copy

        logging.basicConfig(level=logging.INFO, format="%(message)s")
        args = self.args
        assert args is not None  # Optimum builds the command that runs from parsed arguments
        try:
            config = ExportConfig(opset=args.opset, int8=not args.no_int8, profile=args.profile)
            export_copy(args.model, args.output, config=config)
        except (EDViTError, ValueError) as error:
            sys.exit(f"optimum-cli export edvit: {error}")


REGISTER_COMMANDS = [(EDViTExportCommand, ExportCommand)]
