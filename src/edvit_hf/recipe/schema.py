# SPDX-License-Identifier: Apache-2.0
"""A recipe: YAML values for the whole trip, read strictly into the configs of the stages."""

import dataclasses
import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from edvit_hf.data import Augmentation, DatasetConfig
from edvit_hf.data.modalities import input_sizes
from edvit_hf.errors import RecipeError
from edvit_hf.evaluation.evaluator import EvaluateConfig
from edvit_hf.export import ExportConfig
from edvit_hf.planning.fleet import Fleet, default_fleet, load_fleet
from edvit_hf.planning.splitting import SplitConfig
from edvit_hf.pruning import PruneConfig
from edvit_hf.recipe.contradictions import check_joint_terms, check_vocabulary, refuse_equal_splits
from edvit_hf.recipe.defaults import with_defaults
from edvit_hf.recipe.faults import read_completely
from edvit_hf.recipe.overrides import overridden, place_of, read_override
from edvit_hf.recipe.places import Written, with_whole_paths
from edvit_hf.recipe.strategies import AutoConfig, Strategy, as_strategy
from edvit_hf.recipe.unread import refuse_unread
from edvit_hf.storage import read_yaml
from edvit_hf.strict import NOT_READ, RECIPE, is_file, number, one_of, read_strictly, whole_number
from edvit_hf.tasks import MAIN_INPUT, Task
from edvit_hf.training import DistillConfig, FuseConfig, TrainConfig


@dataclass(frozen=True, kw_only=True)
class TeacherConfig(TrainConfig):
    """The model that is split: a checkpoint (folder or Hub id) or a stock config trained from scratch.

    Attributes:
        mixup_alpha: Beta distribution of Mixup's share in the teacher's batches; 0: off. Not for text.
        cutmix_alpha: The same of CutMix; with both on, each batch draws one of them.
        checkpoint: Folder (relative to the recipe) or Hub id of a stock classifier; fine-tuned for `epochs` (0: taken
            as it is).
        revision: Revision of a Hub checkpoint.
        from_scratch: Values of a stock config, with its `model_type`. Without `epochs` it trains for 60.
        config: Only with `checkpoint`: its stock sizes, with the `model_type`, for planning before it is here. When it
            is loaded, it must agree with them.
    """

    epochs: int = 0
    mixup_alpha: float = 0.0
    cutmix_alpha: float = 0.0
    checkpoint: str | None = None
    revision: str | None = None
    from_scratch: dict[str, Any] | None = None
    config: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        if (self.checkpoint is None) == (self.from_scratch is None):
            raise RecipeError(
                "`teacher` needs exactly one of `checkpoint` (a folder or Hub id) and `from_scratch` (a stock config), "
                f"got checkpoint={self.checkpoint!r}, from_scratch={self.from_scratch!r}. Write one of them."
            )
        if self.from_scratch is not None and self.config is not None:
            raise RecipeError(
                "`teacher.config` describes a `checkpoint` before it is here, but this teacher is built "
                "`from_scratch`, whose values are its config. Two of them could disagree. Remove `config`."
            )
        for name in ("from_scratch", "config"):
            values = getattr(self, name)
            if values is not None and "model_type" not in values:
                raise RecipeError(f"`teacher.{name}` needs a `model_type` (for example vit): it names the stock class.")
        for name in ("mixup_alpha", "cutmix_alpha"):
            number(name, getattr(self, name), "[0, inf)", "it is the parameter of a Beta distribution, 0 turns it off")
        if self.epochs == 0 and self.checkpoint is not None:
            whole_number("seed", self.seed, 0, "random generators take no negative seed")
            return
        super().__post_init__()


@dataclass(frozen=True, kw_only=True)
class CardConfig:
    """What only the owner can say for the model card.

    Attributes:
        title: Heading of the card. None: made from the recipe's name.
        license: License of the ensemble, as the Hub writes it.
        repo_id: Hub id that the card's lines to copy name. None: filled in when it is pushed.
        language: Language of the texts, as the Hub writes it (`en`).
        intended_use: What the ensemble is for, in your own sentences.
    """

    title: str | None = None
    license: str = "apache-2.0"
    repo_id: str | None = None
    language: str | None = None
    intended_use: str | None = None


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The whole trip as values. `name` and `folder` come from the file, everything else from its YAML.

    Attributes:
        name: Of the file, without its ending.
        folder: In which the file lies.
        task: What is classified. Left out: what the dataset section's keys, the teacher's model type or the files tell.
        dataset: Where the data come from and how they become the model's input.
        teacher: The classifier that is split.
        split: How the classes are divided into class groups.
        prune: How much of the teacher each sub-model keeps, and how that is chosen.
        distill: How each sub-model learns from the teacher.
        fuse: How the fusion head is trained, and the joint tuning after it.
        augmentation: Random changes of the training inputs.
        evaluate: What stands beside the ensemble in the results.
        export: Which files are written, and what they must satisfy.
        card: What only the owner can say.
        asked: The strategy whose values these are, where one was named. No file holds it.
        strategy: What the devices do for each other. `split`: what the sections say. `replicas`: one plain model, the
            same on every device. `copies`: plain models of other seeds, votes averaged. `overlap`: class groups of
            which every class is known by two. `generalists`: sub-models cut for a class group that vote over all
            classes. `auto`: the one that wins on validation items, see `auto`.
        auto: What `strategy: auto` tries.
        fleet: Fleet file, relative to the recipe: the devices and what each may carry. None: a device without budgets
            for each sub-model, of a family of processors (arm64); `prune.keep_heads` is then a number or "quarter".
    """

    name: str
    folder: Path
    dataset: DatasetConfig
    teacher: TeacherConfig
    task: Task = "image-classification"
    split: SplitConfig = field(default_factory=SplitConfig)
    prune: PruneConfig = field(default_factory=PruneConfig)
    distill: DistillConfig = field(default_factory=DistillConfig)
    fuse: FuseConfig = field(default_factory=FuseConfig)
    augmentation: Augmentation = field(default_factory=Augmentation)
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    export: ExportConfig = field(default_factory=ExportConfig)
    card: CardConfig = field(default_factory=CardConfig)
    strategy: Strategy = "split"
    auto: AutoConfig = field(default_factory=AutoConfig)
    asked: Strategy | None = field(default=None, metadata=NOT_READ)  # the strategy whose values these are
    fleet: str | None = None
    written: Written = field(default_factory=dict, metadata=NOT_READ)  # paths, as the file has them

    def __post_init__(self) -> None:
        one_of("strategy", self.strategy, get_args(Strategy), "it says what the devices do for each other")
        if self.fleet is None and self.prune.keep_heads in ("auto", "per-sub-model") and self.prune.keep_ratios is None:
            raise RecipeError(
                f"`prune.keep_heads: {self.prune.keep_heads}` follows what the devices may carry, but the recipe names "
                "no `fleet`. Without budgets nothing would be pruned. Write `fleet`, or a number as `keep_heads`."
            )
        if self.fuse.views > self.distill.views:
            raise RecipeError(
                f"`fuse.views` ({self.fuse.views}) cannot exceed `distill.views` ({self.distill.views}): "
                "the fusion head learns from the teacher logits stored for distillation. Lower it."
            )
        if self.task == "text-classification" and (self.teacher.mixup_alpha or self.teacher.cutmix_alpha):
            raise RecipeError(
                "`teacher.mixup_alpha` and `teacher.cutmix_alpha` blend inputs, and token ids cannot be blended. "
                "Remove them; `augmentation.token_dropout` is what there is for text."
            )
        if self.fuse.kind != "mlp" and self.fuse.other is None and not self.votes_over_all:
            raise RecipeError(
                f"`fuse.kind: {self.fuse.kind}` averages votes, but each sub-model votes over its own class group. "
                'All that it says of the other classes is one number, "other". Write `distill.votes: all`, or '
                f"`split.coverage: {self.split.num_sub_models}`, or share that number evenly by `fuse.other: spread`."
            )
        if self.strategy == "split" or (self.strategy == "auto" and "split" in self.auto.tries):  # else as it becomes
            check_joint_terms(self)
        if self.prune.vocabulary is not None:
            check_vocabulary(self)
        refuse_equal_splits(self.dataset)
        self.augmentation.check_task(self.task)
        self.dataset.check_task(self.task)
        for name, what in (("from_scratch", "entries"), ("keep_heads", "numbers")):
            listed = getattr(self.prune, name)
            if isinstance(listed, tuple) and len(listed) != self.split.num_sub_models:
                says = "number i says what sub-model i keeps" if what == "numbers" else "entry i is that of sub-model i"
                raise RecipeError(
                    f"`prune.{name}` lists {len(listed)} {what}, but `split.num_sub_models` is "
                    f"{self.split.num_sub_models}: {says}. Make the two agree."
                )

    @property
    def votes_over_all(self) -> bool:
        """Whether every sub-model votes over every class."""
        return self.distill.votes == "all" or self.split.is_all

    @property
    def fleet_path(self) -> Path | None:
        """The fleet file, relative to the recipe; None where it names none."""
        return None if self.fleet is None else (self.folder / self.fleet).resolve()

    def load_fleet(self) -> Fleet:
        """The devices. Raises what `planning.fleet.load_fleet` raises."""
        path = self.fleet_path
        return default_fleet(self.split.num_sub_models) if path is None else load_fleet(path)

    @property
    def main_input(self) -> str:
        """Name of the model's first argument."""
        return MAIN_INPUT[self.task]

    @property
    def input_sizes(self) -> dict[str, Any]:
        """What the dataset section fixes in the config of every model; what it leaves open a checkpoint fixes."""
        is_open = self.teacher.checkpoint is not None
        return input_sizes(self.task, dataclasses.asdict(self.dataset), complete=not is_open)

    @property
    def seeds(self) -> dict[str, int]:
        """Every seed of the trip."""
        sections = ("dataset", "split", "prune", "teacher", "distill", "fuse")
        return {name: getattr(self, name).seed for name in sections}

    def with_seed(self, seed: int) -> "Recipe":
        """The same recipe with every training seed set (dataset split and class groups stay)."""
        changed = {n: dataclasses.replace(getattr(self, n), seed=seed) for n in ("prune", "teacher", "distill", "fuse")}
        return dataclasses.replace(self, **changed)


def packaged_recipes() -> Path:
    """Folder of the recipes that ship with the package (the checkout's `recipes/` when run from one)."""
    packaged = Path(__file__).resolve().parents[1] / "recipes"
    return packaged if packaged.is_dir() else Path(__file__).resolve().parents[3] / "recipes"


def find_recipe(recipe: str | os.PathLike[str]) -> Path:
    """The path of a recipe given as a file or as the name of a packaged one (`digits`).

    Raises:
        RecipeError: Neither exists; names the packaged ones.
    """
    return _find("recipe", recipe, packaged_recipes())


def find_fleet(fleet: str | os.PathLike[str]) -> Path:
    """The path of a fleet given as a file or as the name of a packaged one (`ten_raspberry_pi_4b`).

    Raises:
        RecipeError: Neither exists; names the packaged ones.
    """
    return _find("fleet", fleet, packaged_recipes() / "fleets")


def _find(what: str, given: str | os.PathLike[str], folder: Path) -> Path:
    path = Path(given)
    packaged = folder / f"{path.stem}.yaml"
    if is_file(path):
        return path
    if path.parent == Path() and is_file(packaged):
        return packaged
    known = sorted(p.stem for p in folder.glob("*.yaml"))
    raise RecipeError(
        f"{what} {str(given)!r:.200} does not exist. Give a YAML file or one of the packaged names: {known}."
    )


def load_recipe(recipe: str | os.PathLike[str], overrides: Sequence[str] = ()) -> Recipe:
    """Read a recipe strictly: an unknown key is an error that names the nearest valid one. Light: no torch.

    Args:
        recipe: A file, or the name of a packaged one.
        overrides: Values in place of those of the file, as `distill.epochs=3`.

    Raises:
        RecipeError: Missing file, broken YAML, or everything at once, each with its line, of: unknown or missing keys,
            wrong types, values out of bounds, values that contradict each other.
    """
    path = find_recipe(recipe)
    folder, typed = path.parent.resolve(), dict(read_override(each) for each in overrides)
    values = overridden(read_recipe_file(path), typed)

    def build(sections: dict[str, Any]) -> Recipe:
        filled = with_defaults(sections, folder, is_published=folder == packaged_recipes().resolve())
        whole, written = with_whole_paths(filled, folder, typed)
        named = {**whole, "name": path.stem, "folder": folder}
        built: Recipe = read_strictly(Recipe, named, form=RECIPE)
        refuse_unread(built, sections)
        return dataclasses.replace(as_strategy(built, built.strategy), written=written)

    built: Recipe = read_completely(values, build, Recipe, lambda keys: place_of(keys, path, typed), path.name)
    return built


def read_recipe_file(path: Path) -> dict[str, Any]:
    """The sections that a recipe's file has, not yet read into configs.

    Raises:
        RecipeError: Broken YAML, no mapping, or a key that the file's path gives.
    """
    try:
        data = read_yaml(path)
    except (OSError, ValueError) as error:
        raise RecipeError(f"recipe {path} is no readable YAML: {error}. Correct the file.") from error
    if not isinstance(data, dict):
        raise RecipeError(
            f"recipe {path} must be a mapping of sections, got {type(data).__name__}. See recipes/digits.yaml."
        )
    for reserved in ("name", "folder"):
        if reserved in data:
            raise RecipeError(f"recipe {path}: `{reserved}` is taken from the file's path. Remove the key.")
    return data


def recipe_values(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain data without its place on disk, for hashing and for the card."""
    if recipe.teacher.checkpoint is None:  # else its processor says what the recipe leaves open
        recipe = dataclasses.replace(recipe, dataset=recipe.dataset.filled())
    values = dataclasses.asdict(recipe)
    del values["folder"], values["written"]
    for key in ("label_names", "test_data_dir"):
        if values["dataset"][key] is None:
            del values["dataset"][key]  # so that results of a version without this key stay good
    if values["dataset"]["on_overlap"] == "raise":
        del values["dataset"]["on_overlap"]
    asked = values.pop("asked")
    if recipe.strategy != "auto":
        del values["auto"]
        values["strategy"] = asked or recipe.strategy
        if values["strategy"] == "split":
            del values["strategy"]
    return values
