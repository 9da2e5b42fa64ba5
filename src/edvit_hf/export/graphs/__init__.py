# SPDX-License-Identifier: Apache-2.0
"""ONNX graphs of fp32: drawn from torch, read early, joined, halved, with the preprocessing inside.

Comes in: a sub-model or the fusion head in torch, or a finished graph. Goes out: a clean ONNX model. Only `export` and
the benchmarks call it.
"""
