"""The model card of an ensemble, with its figures, and the zoo of measured ensembles.

Comes in: results.json, manifest.json and what the owner says. Goes out: README.md and assets/, or a table of several
ensembles. The recipe's last stage, `edvit card` and `edvit zoo` call it; no torch.
"""
