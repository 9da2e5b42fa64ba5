"""`python -m edvit_hf.cli`."""

from edvit_hf.cli import main

main()
