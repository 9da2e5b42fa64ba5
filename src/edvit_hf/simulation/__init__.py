# SPDX-License-Identifier: Apache-2.0
"""A fleet under load, simulated: answers a second, percentiles, who is missing, energy, and what the limit is.

Comes in: a plan and its fleet (service times, links, watts), the serving limits of the runtime's own coordinator, a
rate of requests. Goes out: figures that are simulated, not measured, and say so. Discrete events by simpy; no torch.

```python
from pathlib import Path
from edvit_hf.planning import load_fleet
from edvit_hf.published.plan import plan_published
from edvit_hf.simulation import FleetModel, SimulationConfig, simulate

fleet = Path("my_fleet.yaml")
plan, _ = plan_published("work/digits/09_card/ensemble", fleet)
found = simulate(FleetModel.of_plan(plan, load_fleet(fleet)), SimulationConfig(rate=20))
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
