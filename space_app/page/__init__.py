# SPDX-License-Identifier: Apache-2.0
"""What a visitor sees and touches: events come in, the page's parts go out as HTML, styles and scripts.

`app.py` alone calls it; it asks `answers` for everything that is computed.
"""
