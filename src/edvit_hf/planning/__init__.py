# SPDX-License-Identifier: Apache-2.0
"""Which classes go together, and which device carries how much of the teacher, before anything is trained.

Comes in: the teacher's sizes, class groups and a fleet, or a finished ensemble. Goes out: class groups, a plan (keeps,
placement, bytes, MACs, milliseconds), its figure, or an error that names the budget that binds. The recipe and
`published` call it; no torch.

```python
from pathlib import Path
from edvit_hf.architectures.costs import ModelShape
from edvit_hf.errors import BudgetError
from edvit_hf.planning import load_fleet
from edvit_hf.planning.keep_search import plan

sizes = {"hidden_size": 192, "num_attention_heads": 3, "num_hidden_layers": 12, "intermediate_size": 768}
teacher = ModelShape.from_config({"model_type": "vit", **sizes, "image_size": 32, "patch_size": 4}, num_labels=10)
groups, fleet = [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9]], load_fleet(Path("recipes/fleets/five_x86.yaml"))
try:
    found = plan(teacher, groups, fleet, fusion_hidden_size=128)
except BudgetError as error:  # names the budget that binds, and the nearest value that would do
    print(error)
else:
    for part in found.sub_models:
        print(part.index, part.keep_heads, part.bytes, part.device, part.predicted_ms)
    for note in found.notes:
        print(note)
```
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.planning.costs import FleetCosts, Load
    from edvit_hf.planning.figure import save_plan_figure
    from edvit_hf.planning.fleet import Device, Fleet, load_fleet
    from edvit_hf.planning.keep_search import PlacementMethod
    from edvit_hf.planning.placed_plan import place_loads
    from edvit_hf.planning.plan import DevicePlan, Plan, Replica, SubModelPlan
    from edvit_hf.planning.splitting import SplitConfig, split_classes

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "costs": ("FleetCosts", "Load"),
        "figure": ("save_plan_figure",),
        "fleet": ("Device", "Fleet", "load_fleet"),
        "keep_search": ("PlacementMethod",),
        "placed_plan": ("place_loads",),
        "plan": ("DevicePlan", "Plan", "Replica", "SubModelPlan"),
        "splitting": ("SplitConfig", "split_classes"),
    },
)
