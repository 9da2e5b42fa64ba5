# SPDX-License-Identifier: Apache-2.0
"""The values of a recipe's pruning stage: how much stays, and how it is chosen. Light: no torch."""

from dataclasses import dataclass
from typing import Any, Literal, get_args

from edvit_hf.architectures.axes import AttentionKind
from edvit_hf.errors import PruningError
from edvit_hf.strict import number, one_of, whole_number

ImportanceMethod = Literal["kl", "fisher", "linear", "hybrid", "taylor", "magnitude", "apoz", "hsic", "random"]


@dataclass(frozen=True, kw_only=True)
class KeepRatios:
    """Shares of the teacher that stay, in (0, 1], where the three need not agree.

    Attributes:
        residual: Of the residual channels.
        attention: Of the attention dimensions of every layer.
        ffn: Of the FFN units of every layer.
    """

    residual: float
    attention: float
    ffn: float

    def __post_init__(self) -> None:
        for name in ("residual", "attention", "ffn"):
            why = "it is the share that stays, not the one that goes"
            number(f"keep_ratios.{name}", getattr(self, name), "(0, 1]", why, PruningError)


@dataclass(frozen=True, kw_only=True)
class PruneConfig:
    """How the pruning stage chooses what stays.

    Attributes:
        keep_heads: Heads kept in every layer; residual channels and FFN units follow in the same ratio. A list gives
            one number per sub-model (null where `from_scratch` has a config). "auto" leaves it to the planner: the
            largest number that fits, the same for all; "per-sub-model" lets the planner go on where single sub-models
            have room for more. "quarter": a quarter of the teacher's heads, as the measured recipes keep. Left out:
            "auto" with a `fleet`, "quarter" without one.
        keep_ratios: Instead of `keep_heads`: three shares, where the architecture allows them to differ.
        from_scratch: One entry per sub-model: null where it is cut from the teacher, else values of a stock config with
            its `model_type`, and that sub-model is built with random weights and learns by distillation alone, as DeViT
            (arXiv 2309.05015) starts from small models. Labels and input sizes are filled in. None: all are cut.
        attention: How attention shrinks: "whole" heads stay or go; "thin" keeps every head with fewer dimensions;
            "merged" makes each new head from the best dimensions of several neighbouring old ones (UP-ViTs, arXiv
            2111.15127).
        importance: Score of a unit; see `edvit_hf.pruning.unit_scores`.
        samples_per_class: Training items per class of the group that are shown to the teacher while scoring. An
            assumption: ED-ViT (arXiv 2410.11650) does not say; UP-ViTs (arXiv 2111.15127) takes 2 to 5.
        batch_size: Rows per forward (one row = one input with one mask); bounds the memory.
        compensate: Fold the least-squares prediction of what was removed into what stays, before retraining.
        compensation_samples: Only with `compensate`: training items, without their labels, that the prediction is
            fitted on; fewer where there are not so many.
        rounds: Iterative pruning: this many times prune and retrain, with the keep shrinking geometrically.
        round_epochs: Only with `rounds` above 1: epochs of the short retraining after every round but the last.
        vocabulary: Text only: pieces of the teacher's vocabulary that sub-models keep. "seen": those that occur in
            the training texts; a number: so many of the most frequent ones. What everything can be spelt with (single
            characters, bytes, special tokens) stays in either case, and a text of kept pieces is read exactly as
            before. All sub-models share one tokenizer, so it is cut for all classes together. null: the whole one.
        seed: Draws the scored and the fitted items, and the scores of "random"; at least 0.
    """

    keep_heads: int | tuple[int | None, ...] | Literal["auto", "per-sub-model", "quarter"] = "auto"
    keep_ratios: KeepRatios | None = None
    from_scratch: tuple[dict[str, Any] | None, ...] | None = None
    attention: AttentionKind = "whole"
    importance: ImportanceMethod = "fisher"
    samples_per_class: int = 16
    batch_size: int = 256
    compensate: bool = True
    compensation_samples: int = 1024
    rounds: int = 1
    round_epochs: int = 1
    vocabulary: int | Literal["seen"] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("keep_heads", "from_scratch"):
            if isinstance(getattr(self, name), list):
                object.__setattr__(self, name, tuple(getattr(self, name)))
        keep = self.keep_heads
        if self.from_scratch is not None:
            self._check_from_scratch(self.from_scratch)
        if keep not in ("auto", "per-sub-model", "quarter"):
            counts = keep if isinstance(keep, tuple) else (keep,)
            if self.from_scratch is not None and isinstance(keep, tuple):  # null stands there, as checked
                counts = tuple(count for count in keep if count is not None)
            if not counts or not all(type(count) is int and count >= 1 for count in counts):
                raise PruningError(
                    f'`keep_heads` must be "auto", "per-sub-model", "quarter", a whole number of at least 1, or a list '
                    f"with one such number per sub-model, got {keep!r}. It counts the heads that stay in every layer, "
                    "not those that go."
                )
        if self.keep_ratios is not None and keep != "auto":
            raise PruningError(f"`keep_heads` ({keep!r}) and `keep_ratios` both say how much stays. Write one of them.")
        for name, options in (("importance", ImportanceMethod), ("attention", AttentionKind)):
            one_of(name, getattr(self, name), get_args(options), "it decides what is cut", PruningError)
        for name in ("samples_per_class", "batch_size", "compensation_samples", "rounds", "round_epochs"):
            whole_number(name, getattr(self, name), 1, "with less there is nothing to work with", PruningError)
        if self.vocabulary not in (None, "seen"):
            why = 'it is the number of pieces that stay; "seen" keeps those that occur in the training texts'
            whole_number("vocabulary", self.vocabulary, 1, why, PruningError)
        whole_number("seed", self.seed, 0, "random generators take no other", PruningError)

    def _check_from_scratch(self, configs: tuple[dict[str, Any] | None, ...]) -> None:
        """Refuse what contradicts the list of configs, or would stay unread beside it."""
        keep, is_new = self.keep_heads, [config is not None for config in configs]
        places = [i for i, new in enumerate(is_new) if new]
        if not any(is_new):
            raise PruningError(
                "`from_scratch` holds no config, so every sub-model is cut from the teacher, as without it. Remove it, "
                "or write a stock config (model_type, hidden_size, ...) for at least one sub-model."
            )
        for i, config in enumerate(configs):
            if config is not None and "model_type" not in config:
                raise PruningError(
                    f"`from_scratch[{i}]` needs a `model_type` (for example deit), got only {sorted(config)}: it names "
                    "the stock class. Add it."
                )
        if all(is_new) and (keep != "auto" or self.keep_ratios is not None):
            raise PruningError(
                "`from_scratch` gives a config for every sub-model, so nothing is cut and `keep_heads` and "
                "`keep_ratios` would be ignored silently. Remove them."
            )
        if isinstance(keep, tuple) and [count is None for count in keep] != is_new:
            raise PruningError(
                f"`keep_heads` is {list(keep)}, but `from_scratch` has {len(configs)} entries, configs at {places}: "
                "entry i of both belongs to sub-model i, which is either cut or built. Write null in `keep_heads` "
                "exactly where `from_scratch` has a config."
            )
        if self.rounds > 1:
            raise PruningError(
                f"`rounds` is {self.rounds}, but `from_scratch` builds sub-models that are never pruned: a round would "
                "have nothing to cut of them. Use `rounds: 1`, or cut every sub-model from the teacher."
            )
