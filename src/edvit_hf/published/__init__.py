# SPDX-License-Identifier: Apache-2.0
"""What is done to a finished ensemble: plan it for a fleet, measure it, export it again, time it beside its rivals.

Comes in: an ensemble's folder or Hub id. Goes out: a plan and a placement, figures, new files in that folder. The
command line and the recipe's last stages call it. `edvit plan`, `edvit evaluate`, `edvit export` and
`edvit bench --compared` are these functions. What measures, exports or times rivals needs torch.

```python
from pathlib import Path
from edvit_hf.published import make_config, measure_exported, plan_published

ensemble = "space_app/model/digits"  # or, to plan it, a Hub id
plan, placement = plan_published(ensemble, Path("recipes/fleets/five_x86.yaml"))
print(plan.latency_ms, "ms from input to answer; None: no profile of this fleet was measured with `edvit profile`")
for note in plan.notes:
    print(note)
for name, device in placement.devices.items():
    print(name, [part.file for part in device.sub_models])  # `placement.save(folder)` writes placement.json

# On the first items of the test split that its results name; `save_measured` measures all of them for the card.
measured = measure_exported(Path(ensemble), max_items=50)
for row in measured["rows"]:
    print("without", row["absent"], f"{row['accuracy']:.0%}")

config = make_config(fleet=None, profiles=["raspberry-pi-5"], precisions=None)
print(config)  # `export_folder(folder, config)` adds these files to a saved ensemble, gated on its recorded data
```
"""

from typing import TYPE_CHECKING

from edvit_hf.errors import lazy

if TYPE_CHECKING:
    from edvit_hf.published.compared import bench_compared, save_compared
    from edvit_hf.published.export import export_folder, export_report, make_config
    from edvit_hf.published.files import Published, read_published
    from edvit_hf.published.measure import MeasuredBy, measure_exported, measured_by_runtime, save_measured
    from edvit_hf.published.plan import is_published, place_published, placement_file, plan_published

__getattr__, __dir__, __all__ = lazy(
    __name__,
    {
        "compared": ("bench_compared", "save_compared"),
        "export": ("export_folder", "export_report", "make_config"),
        "files": ("Published", "read_published"),
        "measure": ("MeasuredBy", "measure_exported", "measured_by_runtime", "save_measured"),
        "plan": ("is_published", "place_published", "placement_file", "plan_published"),
    },
    needs=("Working on a finished ensemble", "train,export"),
)
