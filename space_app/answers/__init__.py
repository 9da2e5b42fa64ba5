# SPDX-License-Identifier: Apache-2.0
"""What the page computes: a visitor's input and an ensemble come in, what the page says goes out as plain data.

No gradio, no torch and no HTML here; `page` and `app.py` call it, and it knows neither.
"""
