# SPDX-License-Identifier: Apache-2.0
"""Registers the model classes with the Transformers Auto classes; imported when one is first touched."""

from edvit_hf.errors import named_extra

with named_extra("Using a model class", "torch"):
    from transformers import AutoConfig, AutoModel, AutoModelForImageClassification

    from edvit_hf.configuration_edvit import EDViTConfig
    from edvit_hf.modeling_edvit import EDViTForImageClassification, EDViTModel

__all__ = ["EDViTConfig", "EDViTForImageClassification", "EDViTModel"]

AutoConfig.register("edvit", EDViTConfig, exist_ok=True)
AutoModel.register(EDViTConfig, EDViTModel, exist_ok=True)
AutoModelForImageClassification.register(EDViTConfig, EDViTForImageClassification, exist_ok=True)
