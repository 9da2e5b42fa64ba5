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

_CALIBRATION = ("minmax", "entropy", "percentile")
_PRECISIONS = ("fp32", "fp16", "int8", "int8_static")


class EDViTExportCommand(BaseOptimumCLICommand):
    """Exports a saved ensemble to ONNX files with a manifest, in a new folder."""

    COMMAND = CommandInfo(name="edvit", help="Export an edvit_hf ensemble to ONNX, one file per sub-model.")

    @staticmethod
    def parse_args(parser: ArgumentParser) -> None:
        """Declare the arguments."""
        add = parser.add_argument
        add("-m", "--model", required=True, help="Folder of a saved ensemble, or a Hub id.")
        add("--revision", help="Branch, tag or commit of a Hub repository.")
        profile = "Hardware the files are for; may be repeated; default: this machine's kind."
        precision = "What to write besides fp32; may be repeated; default: what each profile asks for."
        add("--profile", action="append", default=[], help=profile)
        add("--fleet", type=Path, help="Fleet file: export for every kind of its devices.")
        add("--precision", action="append", choices=_PRECISIONS, help=precision)
        add("--calibration", choices=_CALIBRATION, default="minmax", help="How static int8 finds its ranges.")
        add("--auto", action="store_true", help="Where int8 misses its gate, search for what must stay float.")
        add("--with-preprocessing", action="store_true", help="Write each file again with the preprocessing inside.")
        add("--no-whole", action="store_true", help="Do not write the whole ensemble as one graph too.")
        add("--recipe", help="Recipe that names the dataset; default: the one that results.json records.")
        add("--data-dir", type=Path, help="Local folder of the data, where the one that is recorded is not here.")
        ungated = "Write int8 and fp16 although nothing says how much accuracy they lose; the manifest says so."
        add("--without-accuracy-gate", action="store_true", help=ungated)
        add("--opset", type=int, default=20, help="ONNX operator set (default: 20).")
        add("output", type=Path, help="Folder to create; it must not exist or be empty.")

    def run(self) -> None:
        """Copy the ensemble and export the copy; exits with status 1 and the reason if it is refused."""
        from edvit_hf.errors import EDViTError
        from edvit_hf.export.commit import copied_ensemble
        from edvit_hf.published.export import export_folder, make_config
        from edvit_hf.recipe import load_data_recipe
        from edvit_hf.terminal import log_to_standard_error, visible_lines

        log_to_standard_error(logging.INFO)
        args = self.args
        assert args is not None  # Optimum builds the command that runs from parsed arguments
        try:
            names = ("fleet", "opset", "calibration", "auto", "with_preprocessing")
            given = {name: getattr(args, name) for name in names}
            config = make_config(profiles=args.profile, precisions=args.precision, whole=not args.no_whole, **given)
            recipe = load_data_recipe(args.recipe) if args.recipe else None
            on = {"recipe": recipe, "data_dir": args.data_dir, "without_accuracy_gate": args.without_accuracy_gate}
            with copied_ensemble(args.model, args.output, revision=args.revision) as folder:
                origin = Path(args.model) if Path(args.model).is_dir() else None
                export_folder(folder, config, **on, origin=origin)
        except (EDViTError, OSError) as error:
            sys.exit(f"optimum-cli export edvit: {visible_lines(error)}")


REGISTER_COMMANDS = [(EDViTExportCommand, ExportCommand)]
