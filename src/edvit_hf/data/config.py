"""Where a dataset comes from and how its images are prepared: the `dataset` part of a recipe."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from edvit_hf.errors import DataError

EMBEDDED_DATASET = "digits"
"""Path of the set that ships inside scikit-learn: 1,797 handwritten digits of 8 x 8 px, 16 grey levels."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """A labelled image dataset.

    Attributes:
        path: "digits" (embedded in scikit-learn), a Hub id, or a builder name ("parquet", "imagefolder").
        name: Configuration of a Hub dataset.
        revision: Git revision of a Hub dataset.
        data_dir: Local folder of parquet files or of class folders; used instead of the Hub.
        local_name: Folder name under the environment variable EDVIT_DATA_DIR; when that folder exists it is
            used instead of everything above.
        image_column: Column of the images. None: `image`, or else the only column of images.
        label_column: Column of the labels: class ids, integers or strings.
        num_labels: Number of classes, for planning before the data are here; when they are loaded it must agree.
        train_split: Name of the training split.
        test_split: Name of the test split.
        validation_split: Name of the validation split; None carves one from the training split.
        validation_fraction: Share of the training rows carved out (stratified, seeded) without a validation
            split.
        test_fraction: Share held out as test rows of a set that ships no split (digits).
        image_size: Side of the square model input, in pixels.
        mean: Per RGB channel, of pixels scaled to 0..1.
        std: Per RGB channel, of pixels scaled to 0..1.
        max_train_samples: Upper limit on training rows (stratified, seeded), before validation rows are
            carved out.
        max_test_samples: Upper limit on test rows (stratified, seeded).
        seed: Of all splits and subsets, and of the replayable augmentation.
        on_error: What to do with a row whose image cannot be decoded: raise, or skip it and log how many
            there were.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    data_dir: str | None = None
    local_name: str | None = None
    image_column: str | None = None
    label_column: str = "label"
    num_labels: int | None = None
    train_split: str = "train"
    test_split: str = "test"
    validation_split: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.25
    image_size: int = 224
    mean: tuple[float, ...] = (0.5, 0.5, 0.5)
    std: tuple[float, ...] = (0.5, 0.5, 0.5)
    max_train_samples: int | None = None
    max_test_samples: int | None = None
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"

    def __post_init__(self) -> None:
        if not self.path:
            raise DataError("`path` is empty. Name a dataset: 'digits', a Hub id, 'parquet' or 'imagefolder'.")
        for name in ("validation_fraction", "test_fraction"):
            if not 0 < getattr(self, name) < 1:
                raise DataError(f"`{name}` must lie in (0, 1), got {getattr(self, name)}. It is a share of the rows.")
        for name in ("max_train_samples", "max_test_samples"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise DataError(f"`{name}` must be at least 1, got {value}. Leave it out to use every row.")
        if self.num_labels is not None and self.num_labels < 2:
            raise DataError(f"`num_labels` must be at least 2, got {self.num_labels}: one class leaves no choice.")
        if self.image_size < 2:
            raise DataError(f"`image_size` must be at least 2 px, got {self.image_size}.")
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or self.seed < 0:
            raise DataError(
                f"`seed` must be a whole number of at least 0, got {self.seed!r}. Random generators take no other; "
                "change it."
            )
        if self.on_error not in ("raise", "skip"):
            raise DataError(f"`on_error` must be 'raise' or 'skip', got {self.on_error!r}.")
        _check_normalisation(self.mean, self.std)
        if self.local_name is not None and (
            "/" in self.local_name or "\\" in self.local_name or self.local_name == ".."
        ):
            raise DataError(f"`local_name` must be one folder name under EDVIT_DATA_DIR, got {self.local_name!r}.")

    def preprocessor(self) -> dict[str, Any]:
        """Return the content of `preprocessor_config.json`, as a stock `ViTImageProcessor` would save it.

        `do_convert_rgb` makes that processor take grey and transparent images as our own transform does.
        """
        return {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(self.mean),
            "image_processor_type": "ViTImageProcessor",
            "image_std": list(self.std),
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": self.image_size, "width": self.image_size},
        }


def _check_normalisation(mean: tuple[float, ...], std: tuple[float, ...]) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3 or not all(math.isfinite(v) for v in values):
            raise DataError(f"`{name}` must be three finite numbers (every image is read as RGB), got {values}.")
    if min(std) <= 0:
        raise DataError(f"`std` must be positive, got {std}: pixels are divided by it.")
