# SPDX-License-Identifier: Apache-2.0
"""`python -m edvit_hf.cli`."""

from edvit_hf.cli import main

main()
