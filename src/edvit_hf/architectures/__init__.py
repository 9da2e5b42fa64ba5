# SPDX-License-Identifier: Apache-2.0
"""What of a stock model can be cut, and what a model of given sizes costs.

Comes in: a stock config. Goes out: an axis table (which axes of which parameter are cut together), widths, parameters,
MACs and bytes. Anybody may call it: it needs neither torch nor transformers.
"""
