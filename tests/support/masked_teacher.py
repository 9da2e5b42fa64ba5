# SPDX-License-Identifier: Apache-2.0
"""The uncut teacher with masks on its units: what a cut model must answer, found without the code that cuts."""

import torch
from torch import Tensor
from transformers import PreTrainedModel

from edvit_hf.errors import PruningError
from edvit_hf.pruning import PruningPlan, architecture_of
from edvit_hf.pruning.masks import Masks, masked
from edvit_hf.pruning.models import AnyInputs, eval_mode, named_inputs
from edvit_hf.pruning.plan import check_plan_fits


def masked_forward(model: PreTrainedModel, plan: PruningPlan, inputs: AnyInputs) -> Tensor:
    """Logits (B, L) of the uncut model with the units outside `plan` masked out: what the cut one must answer.

    Slow and independent of the cutting code: the reference for tests. Keeps all of the teacher's labels. Dropout is
    off, whatever the model's mode.

    Args:
        model: Stock teacher.
        plan: Which units stay.
        inputs: Of B rows, by name; a bare array is the architecture's main input.

    Raises:
        PruningError: The plan belongs to another model, or merges heads: no mask of the teacher does that.
    """
    architecture = architecture_of(model)
    check_plan_fits(plan, architecture, model.config)
    if plan.attention == "merged" and plan.num_heads_after < plan.num_heads:
        raise PruningError(
            f"The plan merges {plan.num_heads} heads into {plan.num_heads_after}: their logits are summed before the "
            "softmax, which no mask on the teacher does. Compare with the pruned model itself."
        )

    def mask(kept: list[int], size: int) -> Tensor:
        zeros = torch.zeros(1, size, dtype=model.dtype, device=model.device)
        return zeros.index_fill_(1, torch.tensor(kept, device=model.device), 1.0)

    layers, width = range(len(plan.kept_ffn)), plan.num_heads * plan.head_dim
    is_whole = plan.attention == "whole"
    heads = [[dimension // plan.head_dim for dimension in kept[:: plan.head_dim]] for kept in plan.kept_attention]
    masks = Masks(
        residual=mask(plan.kept_residual, plan.hidden_size),
        heads={i: mask(heads[i], plan.num_heads) for i in layers} if is_whole else {},
        attention={} if is_whole else {i: mask(plan.kept_attention[i], width) for i in layers},
        ffn={i: mask(plan.kept_ffn[i], plan.intermediate_size) for i in layers},
        pooled=None if plan.kept_pooled is None else mask(plan.kept_pooled, plan.hidden_size),
    )
    named = named_inputs(model, architecture, inputs)
    with torch.no_grad(), eval_mode(model), masked(model, architecture, masks):
        return model(**named).logits
