"""`evaluate.Metric` classes for direct instantiation, because `evaluate.load` always needs the network.

```python
from edvit_hf.metrics import MacroF1

MacroF1().compute(predictions=[0, 1, 1], references=[0, 1, 0])  # {"macro_f1": 0.666...}
```
They work offline, batch by batch (`add_batch`) and together (`evaluate.combine`).
"""

from edvit_hf.metrics.accuracy import Accuracy
from edvit_hf.metrics.class_group_accuracy import ClassGroupAccuracy
from edvit_hf.metrics.macro_f1 import MacroF1

__all__ = ["Accuracy", "ClassGroupAccuracy", "MacroF1"]
