# SPDX-License-Identifier: Apache-2.0
"""Imported by a process that others are forked from: what the first graph costs is then paid once for all of them."""

from edvit_hf.export.graphs.draw import draw_sub_model
from edvit_hf.export.optimum_config import resolve_onnx_config
from support.tiny_architectures import tiny_vit

_model = tiny_vit(num_layers=1)
draw_sub_model(_model, resolve_onnx_config(_model.config), opset=20)
