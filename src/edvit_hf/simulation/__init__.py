# SPDX-License-Identifier: Apache-2.0
"""A fleet under load, simulated: answers a second, percentiles, who is missing, energy, and what the limit is.

Comes in: a plan and its fleet (service times, links, watts), the serving limits of the runtime's own coordinator, a
rate of requests. Goes out: figures that are simulated, not measured, and say so. Discrete events by simpy; no torch.

```python
from pathlib import Path
from edvit_hf.planning import load_fleet
from edvit_hf.recipe import load_recipe
from edvit_hf.recipe.stages.plan import plan_recipe
from edvit_hf.simulation import FleetModel, SimulationConfig, simulate

fleet = Path("recipes/fleets/ten_raspberry_pi_4b.yaml")
plan = plan_recipe(load_recipe("cifar10_vit_base"), fleet=fleet)  # or `published.plan.plan_published`
found = simulate(FleetModel.of_plan(plan, load_fleet(fleet)), SimulationConfig(rate=1.0, requests=200))
print(found.throughput_per_s, found.p99_ms, found.limit)
```
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.simulation.config import MEASURED_WORK, CoordinatorWork, SimulationConfig
    from edvit_hf.simulation.fleet import FleetModel
    from edvit_hf.simulation.outages import Outages
    from edvit_hf.simulation.run import simulate
    from edvit_hf.simulation.tally import Simulated

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "config": ("MEASURED_WORK", "CoordinatorWork", "SimulationConfig"),
        "fleet": ("FleetModel",),
        "outages": ("Outages",),
        "run": ("simulate",),
        "tally": ("Simulated",),
    },
    needs=("Simulating a fleet", "plan"),
)
