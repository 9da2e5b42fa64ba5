# SPDX-License-Identifier: Apache-2.0
"""`accelerate launch --config_file recipes/accelerate/cpu.yaml recipes/run.py recipes/digits.yaml`: as `edvit run`."""

import sys

from edvit_hf.cli import main

if __name__ == "__main__":
    sys.argv.insert(1, "run")
    main()
