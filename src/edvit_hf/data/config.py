# SPDX-License-Identifier: Apache-2.0
"""Where a dataset comes from, how it is divided and how its inputs are prepared: the `dataset` part of a recipe."""

import dataclasses
import json
import math
import re
from dataclasses import dataclass
from typing import Any, Literal

from edvit_hf.data.modalities import IMAGES, AudioConfig, TextConfig
from edvit_hf.errors import DataError
from edvit_hf.strict import RECIPE, number, one_of, read_strictly, whole_number
from edvit_hf.tasks import OTHER_LABEL, Task, label_names_fault

_MAX_SIDE = 8192  # of a prepared image, in pixels
EMBEDDED_DATASET = "digits"
"""Path of the set that ships inside scikit-learn: 1,797 handwritten digits of 8 x 8 px, 16 grey levels."""
FILE_BUILDERS = ("parquet", "csv")
FOLDER_BUILDERS: dict[Task, str] = {"image-classification": "imagefolder", "audio-classification": "audiofolder"}
BUILDERS = (*FILE_BUILDERS, *FOLDER_BUILDERS.values())
"""Values of `path` for local files."""


@dataclass(frozen=True, kw_only=True)
class DatasetConfig:
    """A labelled dataset of images, sounds or texts.

    Attributes:
        path: "digits" (embedded in scikit-learn), a Hub id, or a builder name ("parquet", "csv", "imagefolder",
            "audiofolder"). An absolute path, or one that begins with `./` or `../`, is a `data_dir`.
        name: Configuration of a Hub dataset.
        revision: Git revision of a Hub dataset.
        data_dir: Local folder of parquet or csv files (SPLIT.csv, or SPLIT-00000-of-00003.parquet and so on) or of
            class folders (SPLIT/CLASS/FILE, or CLASS/FILE, which is one split called train); used instead of the
            Hub. A list of folders: their rows together, split by split, with the same classes in each. A path is
            taken literally, a relative one from the recipe's folder.
        test_data_dir: Another such folder that the test split comes from: its split called `test_split`, or all of a
            folder of CLASS/FILE. Its classes are those of the training split, by name.
        local_name: Folder name under the environment variable EDVIT_DATA_DIR; when that folder exists it is
            used instead of everything above.
        streaming: Read the first rows only, after a seeded shuffle of a buffer, instead of fetching every file. Needs
            `max_train_samples` and `max_test_samples` (which then limits a named validation split, too). What is
            taken depends on the order of the files, so shuffle a dataset that is sorted by class.
        input_column: Column of the images, sounds or texts. None: the one called `image`, `audio` or `text`, or
            else the only column of that kind.
        label_column: Column of the labels: class ids, integers or strings.
        num_labels: Number of classes, for planning before the data are here; when they are loaded it must agree.
        label_names: Name of each class id 0, 1, ..., for integer labels without names. For string labels: their order.
            None: the names that the dataset declares, or else the distinct labels, sorted.
        train_split: Name of the training split.
        test_split: Name of the test split; None holds out `test_fraction` of the training split.
        validation_split: Name of the validation split; None carves one from the training split.
        validation_fraction: Share of the training rows carved out (stratified, seeded) without a validation split.
        test_fraction: Share held out as test rows of a set that ships no test split.
        group_column: Column that says what rows must stay together (speaker, song, fold): no group then lies in both
            the training and the validation rows.
        group_pattern: Instead of a column, a regular expression searched in the file name of each image or sound (its
            path below the dataset's folder); its first capture group is the group. A row without a match is a group
            of its own.
        test_groups: Groups that are the test split, out of all rows of training and test split together: one fold of a
            cross-validation.
        image_size: Side of the square model input, in pixels. Images only, like the next two. None: what the processor
            of a checkpoint says, 224 without one. A value that says otherwise than that processor is refused.
        mean: Per RGB channel, of pixels scaled to 0..1. None as above, 0.5 without a processor.
        std: Per RGB channel, of pixels scaled to 0..1. None as above, 0.5 without a processor.
        audio: Spectrograms of an audio task; None follows the processor of a checkpoint, or else the defaults.
        text: Tokens of a text task; None follows the tokenizer of a checkpoint, or else the defaults.
        max_train_samples: Upper limit on training rows (stratified, seeded), before validation rows are carved out.
        max_test_samples: Upper limit on test rows (stratified, seeded).
        seed: Of all splits and subsets, and of the replayable augmentation.
        on_error: What to do with a row that cannot be decoded or has no label: raise, or skip it and log how many
            there were.
        on_overlap: What training does where test or validation rows are training rows, too (the same bytes or the
            same text): raise, drop those training rows, or keep them. The results say how many there are.
    """

    path: str
    name: str | None = None
    revision: str | None = None
    data_dir: str | tuple[str, ...] | None = None
    test_data_dir: str | None = None
    local_name: str | None = None
    streaming: bool = False
    input_column: str | None = None
    label_column: str = "label"
    num_labels: int | None = None
    label_names: tuple[str, ...] | None = None
    train_split: str = "train"
    test_split: str | None = "test"
    validation_split: str | None = None
    validation_fraction: float = 0.1
    test_fraction: float = 0.25
    group_column: str | None = None
    group_pattern: str | None = None
    test_groups: tuple[str | int, ...] = ()
    image_size: int | None = None
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    audio: AudioConfig | None = None
    text: TextConfig | None = None
    max_train_samples: int | None = None
    max_test_samples: int | None = None
    seed: int = 0
    on_error: Literal["raise", "skip"] = "raise"
    on_overlap: Literal["raise", "drop", "keep"] = "raise"

    def __post_init__(self) -> None:
        if not self.path:
            raise DataError(
                "`path` is empty. Name a dataset: 'digits', a Hub id, 'parquet', 'csv', 'imagefolder' or 'audiofolder'."
            )
        for name in ("validation_fraction", "test_fraction"):
            number(name, getattr(self, name), "(0, 1)", "it is a share of the rows", DataError)
        for name in ("max_train_samples", "max_test_samples"):
            if getattr(self, name) is not None:
                whole_number(name, getattr(self, name), 1, "leave it out to use every row", DataError)
        if self.num_labels is not None:
            whole_number("num_labels", self.num_labels, 2, "one class leaves no choice", DataError)
        if self.image_size is not None:
            whole_number("image_size", self.image_size, 2, "it is the side of an image in pixels", DataError)
            number("image_size", self.image_size, f"[2, {_MAX_SIDE}]", "each image would fill the memory", DataError)
        whole_number("seed", self.seed, 0, "random generators take no other", DataError)
        one_of("on_error", self.on_error, ("raise", "skip"), "it is what a damaged row does", DataError)
        one_of("on_overlap", self.on_overlap, ("raise", "drop", "keep"), "it is what shared rows do", DataError)
        _check_label_names(self)
        _check_normalisation(self.mean, self.std)
        _check_source(self)
        _check_groups(self)

    @property
    def has_groups(self) -> bool:
        """Whether rows belong to groups that must not be torn apart."""
        return self.group_column is not None or self.group_pattern is not None

    def check_task(self, task: Task) -> None:
        """Refuse a section of another task.

        Raises:
            DataError: It would be ignored silently.
        """
        for section, owner in (("audio", "audio-classification"), ("text", "text-classification")):
            if getattr(self, section) is not None and task != owner:
                raise DataError(
                    f"`dataset.{section}` is read by the task {owner} only, got it with {task}. It would be ignored "
                    f"silently. Remove it, or write `task: {owner}`."
                )

    def filled(self) -> "DatasetConfig":
        """The same with the defaults in place of the input sizes and values that are left to a checkpoint's processor.

        A whole section that is left out stays so.
        """
        images: dict[str, Any] = {
            name: IMAGES[name] if getattr(self, name) is None else getattr(self, name) for name in IMAGES
        }
        parts: dict[str, Any] = {
            name: part.filled() for name in ("audio", "text") if (part := getattr(self, name)) is not None
        }
        return dataclasses.replace(self, **images, **parts)

    def as_the_model(self) -> "DatasetConfig":
        """The same data without a word of how inputs are prepared: that is left to the processor of a model."""
        nothing: dict[str, Any] = dict.fromkeys((*IMAGES, "audio", "text"))
        return dataclasses.replace(self, **nothing)

    def preprocessor(self, task: Task = "image-classification") -> dict[str, Any]:
        """Return the content of `preprocessor_config.json`, as the stock class of an image or audio task saves it.

        The stock classes are `ViTImageProcessor` and `ASTFeatureExtractor`. `do_convert_rgb` makes the first
        take grey and transparent images as our own transform does.
        """
        if task == "audio-classification":
            return (self.audio or AudioConfig()).preprocessor()
        if task != "image-classification":
            raise ValueError(f"A tokenizer, not a preprocessor config, prepares the inputs of {task}.")
        values = self.filled()
        assert values.mean is not None
        assert values.std is not None
        return {
            "do_convert_rgb": True,
            "do_normalize": True,
            "do_rescale": True,
            "do_resize": True,
            "image_mean": list(values.mean),
            "image_processor_type": "ViTImageProcessor",
            "image_std": list(values.std),
            "resample": 2,
            "rescale_factor": 1 / 255,
            "size": {"height": values.image_size, "width": values.image_size},
        }

    def written_preprocessor(self, task: Task) -> dict[str, tuple[str, Any]]:
        """Which of `preprocessor` is said here: its key -> the name in this section, and its value there."""
        if task == "audio-classification":
            audio = {} if self.audio is None else dataclasses.asdict(self.audio)
            return {name: (f"audio.{name}", value) for name, value in audio.items() if value is not None}
        values = self.preprocessor()
        names = {"image_size": "size", "mean": "image_mean", "std": "image_std"}
        return {key: (name, values[key]) for name, key in names.items() if getattr(self, name) is not None}


def as_json(values: dict[str, Any]) -> str:
    """The text of a config file, as the stock processors write theirs."""
    return json.dumps(values, indent=2, sort_keys=True) + "\n"


def _check_label_names(config: DatasetConfig) -> None:
    names = config.label_names
    if names is None:
        return
    fault = "one class leaves no choice." if len(names) < 2 else label_names_fault(names)
    if fault is not None:
        raise DataError(
            f"`label_names` must be at least two different names, none of them empty or {OTHER_LABEL!r}, got "
            f"{list(names)}: {fault} Every class is known by its name. Write one for each class id, from 0."
        )
    if config.num_labels not in (None, len(names)):
        raise DataError(
            f"`num_labels` is {config.num_labels}, but `label_names` has {len(names)} names. What is planned would not "
            "hold. Correct one of them, or leave `num_labels` out."
        )


def _check_normalisation(mean: tuple[float, ...] | None, std: tuple[float, ...] | None) -> None:
    for name, values in (("mean", mean), ("std", std)):
        if values is not None and (len(values) != 3 or not all(math.isfinite(v) for v in values)):
            raise DataError(f"`{name}` must be three finite numbers (every image is read as RGB), got {values}.")
    if std is not None and min(std) <= 0:
        raise DataError(f"`std` must be positive, got {std}: pixels are divided by it.")


def _check_source(config: DatasetConfig) -> None:
    if config.local_name is not None and (
        "/" in config.local_name or "\\" in config.local_name or config.local_name in ("", ".", "..")
    ):
        raise DataError(f"`local_name` must be one folder name under EDVIT_DATA_DIR, got {config.local_name!r}.")
    _check_folders(config)
    if config.streaming and (config.max_train_samples is None or config.max_test_samples is None):
        raise DataError(
            "`streaming` needs `max_train_samples` and `max_test_samples`, got one or none of them. Without a limit "
            "every row would be fetched, which streaming is there to avoid. Set both, or remove `streaming`."
        )


def _check_folders(config: DatasetConfig) -> None:
    folders = config.data_dir
    names = [folders] if isinstance(folders, str) else list(folders or ())
    if folders is not None and not (names and all(names)):
        raise DataError(
            f"`data_dir` must name a folder, or a list of folders, got {folders!r}. An empty name would be the folder "
            "where the command runs. Write the path, or leave `data_dir` out."
        )
    if config.test_data_dir is None:
        return
    if not config.test_data_dir or config.test_split is None or config.test_groups:
        raise DataError(
            f"`test_data_dir` is {config.test_data_dir!r}, the folder that the test split comes from, beside "
            f"`test_split: {config.test_split}` and `test_groups: {list(config.test_groups)}`. Test rows come from one "
            "place. Name a folder and a `test_split` and leave `test_groups` out, or leave `test_data_dir` out."
        )
    if config.path == EMBEDDED_DATASET and folders is None:
        raise DataError(
            "The embedded digits have test rows of their own, and `test_data_dir` names others. Leave `test_data_dir` "
            "out."
        )


def _check_groups(config: DatasetConfig) -> None:
    if config.group_column is not None and config.group_pattern is not None:
        raise DataError("`group_column` and `group_pattern` both say what the groups are. Keep one of them.")
    if config.test_groups and not config.has_groups:
        raise DataError(
            f"`test_groups` names groups {list(config.test_groups)}, but nothing says which group a row is in. Set "
            "`group_column` or `group_pattern`."
        )
    if config.group_pattern is None:
        return
    try:
        captures = re.compile(config.group_pattern).groups
    except re.error as error:
        raise DataError(
            f"`group_pattern` must be a regular expression, got {config.group_pattern!r}: {error}. Correct it."
        ) from error
    if captures < 1:
        raise DataError(
            f"`group_pattern` must have a capture group, which is the group's name, got {config.group_pattern!r}. "
            "Put parentheses around that part, for example '^(\\d)-'."
        )


def dataset_from_values(values: dict[str, Any]) -> DatasetConfig:
    """The dataset section of recorded recipe values, read as strictly as a recipe."""
    config: DatasetConfig = read_strictly(DatasetConfig, values, "dataset", RECIPE)
    return config
