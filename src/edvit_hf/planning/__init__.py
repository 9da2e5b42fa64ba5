"""Which device carries how much of the teacher, before anything is trained or for what is finished.

Comes in: the teacher's sizes, class groups and a fleet. Goes out: a plan (keeps, placement, bytes, MACs, milliseconds),
its figure, or an error that names the budget that binds. The recipe and `published` call it; no torch.
"""
