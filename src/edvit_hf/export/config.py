"""The export's settings. Light, so that a recipe can be read where nothing heavy is installed."""

import difflib
from dataclasses import dataclass

from edvit_hf.profiles import load_profiles

MIN_OPSET, MAX_OPSET = 18, 23  # what torch's exporter emits natively .. the newest tried here


@dataclass(frozen=True, kw_only=True)
class ExportConfig:
    """How an ensemble is exported, and what its files must satisfy to be accepted.

    Attributes:
        opset: ONNX operator set; 20 is the first with Gelu, and every onnxruntime since 1.17 reads it.
        int8: Whether to write a dynamically quantized file per sub-model too.
        profile: Hardware the int8 files are for (a name in devices.yaml); None is this machine's.
        max_relative_difference: Largest difference from torch allowed for fp32, over the largest logit.
        max_int8_accuracy_loss: Largest loss of ensemble accuracy (fraction) allowed for int8 against fp32
            ONNX on the gating split; up to two items are allowed whatever it says.
    """

    opset: int = 20
    int8: bool = True
    profile: str | None = None
    max_relative_difference: float = 1e-4
    max_int8_accuracy_loss: float = 0.005

    def __post_init__(self) -> None:
        """Check ranges and the profile's name."""
        if not MIN_OPSET <= self.opset <= MAX_OPSET:
            raise ValueError(f"`opset` must lie in [{MIN_OPSET}, {MAX_OPSET}], got {self.opset}.")
        if not 0 < self.max_relative_difference < 1:
            raise ValueError(
                f"`max_relative_difference` must lie in (0, 1), got {self.max_relative_difference}. It is "
                f"a share of "
                f"the largest logit; two engines never agree bit for bit."
            )
        if not 0 <= self.max_int8_accuracy_loss <= 1:
            raise ValueError(
                f"`max_int8_accuracy_loss` must lie in [0, 1], got {self.max_int8_accuracy_loss}. It is a fraction."
            )
        if self.profile is not None and self.profile not in load_profiles():
            near = difflib.get_close_matches(self.profile, load_profiles(), n=1)
            hint = f"Did you mean {near[0]!r}?" if near else f"Known: {', '.join(load_profiles())}."
            raise ValueError(f"`profile` {self.profile!r} is no known kind of hardware. {hint}")
