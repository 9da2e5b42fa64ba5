# SPDX-License-Identifier: Apache-2.0
"""Child processes with limits, for whatever strangers send: what hangs, crashes or swells in one costs only itself.

Comes in: what a job is made of, and questions (JSON and arrays). Goes out: answers, or errors that refuse one question.
`Child` is one process, `Pool` several that replace each other. Those who take
inputs or ensembles of strangers call it; for one's own files it costs time and gives nothing. Children import numpy and
what their job needs, never torch.
"""

from edvit_hf.isolation.limits import ChildLimits
from edvit_hf.isolation.pool import Pool
from edvit_hf.isolation.process import Child, IsolationError
from edvit_hf.isolation.protocol import Message, as_bytes

__all__ = ["Child", "ChildLimits", "IsolationError", "Message", "Pool", "as_bytes"]
