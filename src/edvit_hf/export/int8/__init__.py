# SPDX-License-Identifier: Apache-2.0
"""int8 files: dynamic, static with calibrated ranges, and the search for what must stay float.

Comes in: an fp32 file, a preset, calibration items. Goes out: an int8 file and the count of what was quantized. Only
`export` and the benchmarks call it.
"""
