"""What stands beside an ensemble when it is measured. Light: no torch."""

from dataclasses import dataclass

from edvit_hf.errors import RecipeError


@dataclass(frozen=True, kw_only=True)
class EvaluateConfig:
    """What stands beside the ensemble in the results.

    Attributes:
        baselines: Train the honest baselines (plain models of per-device and of total size; a small CNN, or TF-IDF with
            a linear classifier for text).
        baseline_epochs: Epochs of the plain model of one device's size over all items; larger ones get at most twice
            its compute. None: as many item passes as the sub-models together, which differs with their number.
        max_subsets: At most this many subsets of absent sub-models are measured for each number absent.
        batch_size: Test items per forward pass.
    """

    baselines: bool = True
    baseline_epochs: int | None = None
    max_subsets: int = 20
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("baseline_epochs", "max_subsets", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise RecipeError(f"`evaluate.{name}` must be at least 1, got {value}. Nothing would be measured.")
