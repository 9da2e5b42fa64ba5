"""What is done to a finished ensemble: plan it for a fleet, measure it, export it again, time it beside its rivals.

Comes in: an ensemble's folder or Hub id. Goes out: a plan and a placement, figures, new files in that folder. The
command line and the recipe's last stages call it.
"""
