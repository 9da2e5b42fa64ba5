# SPDX-License-Identifier: Apache-2.0
"""What this machine is, how fast it is, and where a number measured on it comes from.

Comes in: the machine itself, or a profile that was measured elsewhere. Goes out: kinds of hardware, usable cores,
predicted milliseconds, timings with their spread, provenance. Anybody may call it: neither torch nor transformers.
"""
