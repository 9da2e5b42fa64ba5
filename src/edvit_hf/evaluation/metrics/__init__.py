"""`evaluate.Metric` classes for direct instantiation, because `evaluate.load` always needs the network.

```python
import evaluate
from edvit_hf.evaluation.metrics import Accuracy, ClassGroupAccuracy, MacroF1

MacroF1().compute(predictions=[0, 1, 1], references=[0, 1, 0])  # {"macro_f1": 0.666...}
evaluate.combine([Accuracy(), MacroF1(), ClassGroupAccuracy([[0], [1]])])  # all of them, also batch by batch
```
They work offline, batch by batch (`add_batch`) and together (`evaluate.combine`). `evaluate.evaluator(task)` takes
them as objects, with a model object or the folder of a published ensemble. With a *pipeline object* evaluate 0.4.6
fails on transformers 5 ("module transformers has no attribute TFPreTrainedModel"): hand it the pipeline's model and
processor instead. docs/guides/metrics.md has the calls per task.
"""

from edvit_hf.evaluation.metrics.accuracy import Accuracy
from edvit_hf.evaluation.metrics.class_group_accuracy import ClassGroupAccuracy
from edvit_hf.evaluation.metrics.expected_calibration_error import ExpectedCalibrationError
from edvit_hf.evaluation.metrics.macro_f1 import MacroF1

__all__ = ["Accuracy", "ClassGroupAccuracy", "ExpectedCalibrationError", "MacroF1"]
