# SPDX-License-Identifier: Apache-2.0
"""Text of visitors, cards and ensembles as HTML that shows it: no markup, no control characters, no turned order."""

import html
import re

# What turns the order of what follows it, or cannot be seen: with them a label shows as another one.
_UNSEEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2028\u2029\u2066-\u2069]")


def escape(text: str) -> str:
    r"""A text as HTML; characters that would be obeyed and not shown are written out, such as `\u202e`."""
    return html.escape(_UNSEEN.sub(lambda found: f"\\u{ord(found[0]):04x}", text))
