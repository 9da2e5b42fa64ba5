# SPDX-License-Identifier: Apache-2.0
"""Class-wise structured pruning: score the units of a teacher, plan which stay, cut a smaller model, compensate.

Comes in: a stock teacher and samples of a class group. Goes out: scores, a plan that prints, a smaller stock model of
the same class. `recipe` calls it. Names load when first touched: `edvit_hf.pruning.config` is read without torch.

```python
import torch
from transformers import ViTConfig, ViTForImageClassification
from edvit_hf.architectures.axes import widths_of_heads
from edvit_hf.pruning import architecture_of, compensate, make_plan, prune, unit_scores
from edvit_hf.tasks import num_labels_of

sizes = {"hidden_size": 32, "num_attention_heads": 4, "num_hidden_layers": 2, "intermediate_size": 64}
config = ViTConfig(**sizes, image_size=8, patch_size=4, num_labels=10, initializer_range=0.2)
teacher = ViTForImageClassification(config).eval()  # or a trained one, from a folder or the Hub
group, samples = [3, 7], torch.randn(64, 3, 8, 8)  # the classes of one sub-model, and training items of theirs
scores = unit_scores(teacher, samples, group, method="fisher", progress=False)
widths = widths_of_heads(architecture_of(config).widths(config), 2, labels=num_labels_of(group, config.num_labels))
plan = make_plan(scores, config, widths)
print(plan)
sub_model = prune(teacher, plan, group)
compensate(sub_model, teacher, plan, group, samples, progress=False)
print(sub_model.config.hidden_size, sub_model.config.id2label)
```
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.pruning.compensation import compensate
    from edvit_hf.pruning.config import PruneConfig
    from edvit_hf.pruning.cut import prune
    from edvit_hf.pruning.models import ARCHITECTURES, Architecture, architecture_of
    from edvit_hf.pruning.plan import PruningPlan, make_plan
    from edvit_hf.pruning.score import UnitScores, unit_scores

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "models": ("ARCHITECTURES", "Architecture", "architecture_of"),
        "compensation": ("compensate",),
        "config": ("PruneConfig",),
        "score": ("UnitScores", "unit_scores"),
        "plan": ("PruningPlan", "make_plan"),
        "cut": ("prune",),
    },
)
