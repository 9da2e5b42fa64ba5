"""Engines carry a request to sub-model i and bring its features back; the coordinator decides everything else.

Comes in: a `SubModelRequest`. Goes out: a `Pending` answer. Only the runtime calls them.
"""
