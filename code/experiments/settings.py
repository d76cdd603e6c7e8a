"""Experiments: their settings, names and scales.

A name reads `table/base/row`, and the base is the model that is trained: `table3/gpt2-medium/lora-r4`. The task stands
before the row unless it is E2E: `table2/minilm/mrpc/lora-r8`. The experiments themselves are declared in the modules
beside this one; `catalogue.py` finds them by name.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args, get_type_hints

SCALES = ("quick", "cpu", "paper")
OFFICIAL = "official-code"  # the variant of an experiment that follows the official code

LIMIT = 1e9  # no number of a sensible run reaches it, and far above it torch has no such integers
BOUNDS: tuple[tuple[tuple[str, ...], Callable[[float], bool], str], ...] = (  # settings, what they may be, in words
    (("learning_rate", "batch_size", "rank", "alpha", "b_learning_rate_ratio", "top_layers", "bottleneck",
      "prefix_tokens", "adam_epsilon", "train_rows", "beams", "max_new_tokens", "max_length", "rank_stages",
      "schedule_every", "patience", "rank_budget"),
     lambda value: 0 < value < LIMIT, "above 0 and below 1e9"),
    (("epochs", "warmup_steps", "dropped_layers", "weight_decay", "max_grad_norm", "no_repeat_ngram", "min_improvement",
      "grace"),
     lambda value: 0 <= value < LIMIT, "0 or above and below 1e9"),
    (("warmup_ratio", "lora_dropout", "label_smoothing", "head_dropout", "adam_betas"),
     lambda value: 0 <= value < 1, "from 0 to below 1"),
    (("length_penalty",), lambda value: 0 <= value <= 10, "from 0 to 10"),  # a length to a high power is no number
    (("old_stages",), lambda value: 0 <= value <= 1, "a share of the learning rate, from 0 (frozen) to 1"),
)  # fmt: skip

CHOICES = {  # setting -> the words that it may be
    "precision": ("float32", "tf32", "bfloat16", "auto"), "decay": ("all", "matrices"), "keep": ("best-epoch", "last"),
    "evaluate": ("test", "dev", "selection"), "protocol": ("challenge", "lora"),
    "learning_rate_schedule": ("linear", "constant"), "stage_trigger": (None, "fixed", "plateau"),
}  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """All besides seed and data that decides a run's result; ValueError for a value of another type or out of range."""

    task: str
    model: str
    method: str
    learning_rate: float
    epochs: int  # 0: nothing is trained; what `start_from` learnt is scored with these settings
    batch_size: int
    warmup_steps: int = 0
    warmup_ratio: float = 0.0  # of all steps, where warmup_steps is 0
    # the method's own
    rank: int | None = None
    alpha: float | None = None
    lora_dropout: float = 0.0
    targets: tuple[str, ...] = ()
    rank_stabilised: bool = False  # LoRA scaled by alpha / sqrt(rank), not alpha / rank
    b_learning_rate_ratio: float = 1.0  # LoRA+: the learning rate of B over that of A
    frozen_positions: bool = False  # DeBERTa: positions are projected by the frozen query, as in the official code
    # the methods beside LoRA
    top_layers: int | None = None  # partial fine-tuning: how many of the last layers
    bottleneck: int | None = None  # width of an adapter
    dropped_layers: int = 0  # AdapterDrop: how many of the first layers have no adapter
    prefix_tokens: int | None = None  # PreEmbed and PreLayer: trained positions before the input
    # rank over time
    rank_stages: tuple[int, ...] = ()  # the total rank of each stage: (2, 4, 6, 8)
    stage_trigger: str | None = None  # "fixed": stages of equal length; "plateau": of the validation loss
    old_stages: float = 0.0  # learning rate of earlier stages, as a fraction: 0 frozen, 1 unfrozen
    schedule_every: int | None = None  # steps between validations for a plateau, or between reallocations
    patience: int = 2  # validations without improvement that make a plateau
    min_improvement: float = 0.0  # of the validation loss, in nats
    grace: int = 0  # first validations of a stage, which cannot end it
    rank_budget: int | None = None  # adaptive rank: pairs of rank 1 in all adapted matrices together
    # optimisation
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 0.0  # 0: no clipping
    decay: str = "all"  # every parameter has weight decay; or "matrices": neither biases nor LayerNorms
    precision: str = "float32"  # "tf32": with a GPU's TF32 products; "bfloat16": autocast; "auto": where it is fast
    int8_base: bool = False  # the frozen matrices in int8, by torchao
    gradient_checkpointing: bool | None = False  # recompute the forward pass; None: if a GPU's memory asks for it
    train_rows: int | None = None  # None: all; else the first of a fixed shuffle
    keep: str = "best-epoch"  # or "last"; a GLUE record has every epoch's scores
    evaluate: str = "test"  # "selection": by the loss on rows where settings may be chosen; "dev": those rows decoded
    start_from: str | None = None  # the experiment whose trained adapter this one starts with
    # E2E
    protocol: str = "lora"
    official_text: bool = False  # the official code's own text of all splits where it can be had, else rebuilt
    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram: int = 4
    max_new_tokens: int = 64
    blank_line_ends: bool = True  # an answer ends at a blank line too, as in the official code
    # GLUE
    max_length: int | None = None
    head_dropout: float | None = None  # DeBERTa's cls_dropout; None: the model's own
    hold_out: bool = True  # a tenth of the training rows chooses an epoch; if not, all are trained on
    # mistakes of earlier reproductions, measured by the experiments `pitfalls/...`
    train_head: bool = True  # GLUE; if not, the new head stays as it was drawn
    prompt_loss: bool = False  # E2E: the context carries a loss as well, `jlm` of the official code
    end_loss: bool = True  # E2E: the end token carries a loss, from which the model learns to stop
    new_tokens: bool = False  # E2E: the context stands between two new tokens, whose random rows LoRA leaves frozen
    transposed_init: bool = False  # A is drawn as if it were stored (d_in, rank): its fan-in is the rank, not d_in
    packed_pair: bool = False  # GPT-2: one pair over the whole of c_attn, so that the key is adapted too
    learning_rate_schedule: str = "linear"  # or "constant": neither warm-up nor decay
    single_reference: bool = False  # E2E: scored against the first reference of each input only
    pad_to_maximum: bool = False  # pad every batch to max_length, on E2E to 512 tokens (or the model's positions)

    def __post_init__(self) -> None:
        check_values(self)
        if not self.epochs and not self.start_from:
            raise ValueError("epochs must be above 0 in a run that starts from no other, found 0")
        if not self.hold_out and self.evaluate == "selection":
            raise ValueError('evaluate="selection" scores the rows that are held out: leave hold_out=False out')
        if any(later <= rank for rank, later in pairwise(self.rank_stages)):
            raise ValueError(
                "rank_stages must be total ranks that increase from stage to stage, such as (2, 4, 6, 8), found "
                f"{self.rank_stages}"
            )
        if len(self.adam_betas) != 2:
            raise ValueError(f"adam_betas must be two numbers, found {self.adam_betas}")
        if self.official_text and self.protocol != "lora":
            raise ValueError(
                f"official_text is text of the protocol lora, found the protocol {self.protocol}: leave one of them out"
            )
        for name, words in CHOICES.items():
            if getattr(self, name) not in words:
                known = ", ".join(word for word in words if word)
                raise ValueError(f"{name} must be one of {known}, found {getattr(self, name)!r}")


def check_values(settings: Any) -> None:
    """Raise ValueError if a field of a dataclass, with the name of a setting, is no value that the setting may have."""
    values = {field.name: getattr(settings, field.name) for field in fields(settings)}
    for names, allows, expected in BOUNDS:
        for name in filter(values.__contains__, names):
            for number in values[name] if isinstance(values[name], tuple) else (values[name],):
                if type(number) in (int, float) and not allows(number):
                    raise ValueError(f"{name} must be {expected}, found {values[name]}")
    for field in fields(settings):
        several = type(values[field.name]) is tuple
        types = {*map(type, values[field.name] if several else (values[field.name],))}
        if several != field.type.startswith("tuple") or not types <= _types()[field.name]:
            raise ValueError(f"{field.name} must be of type {field.type}; found {values[field.name]!r}")


@cache
def _types() -> dict[str, set[Any]]:
    """The types of each setting's value, or of its tuple's items. An int is a float too; a bool is no number."""
    types = {name: {*(get_args(hint) or (hint,))} for name, hint in get_type_hints(Settings).items()}
    return {name: each | {int} if float in each else each for name, each in types.items()}


def check_seed(seed: int) -> None:
    """Raise ValueError if every random generator of a run cannot be started with this seed."""
    if type(seed) is not int or not 0 <= seed < 2**32:
        raise ValueError(f"a seed is a whole number from 0 to {2**32 - 1:,}, found {seed}")


@dataclass(frozen=True)
class Job:
    """One training: its settings, seed and folders."""

    settings: Settings
    seed: int
    folder: Path  # of its checkpoints, from which a stopped training continues
    data_dir: Path | None = None  # with `e2e/` and `glue/`; None: the places of `files.py`

    def __post_init__(self) -> None:
        check_seed(self.seed)


@dataclass(frozen=True)
class Experiment:
    """One row of one table by name."""

    name: str
    about: str
    settings: Settings
    scale: str
    cell: tuple[str, str, str] | None = None  # the paper's row: (model, method, trainable as printed)
    variant: str = "paper"  # or OFFICIAL
    against: str | None = None  # the experiment to compare with, if not full fine-tuning: plain LoRA, say

    @property
    def table(self) -> str:
        return self.name.split("/")[0]

    @property
    def row(self) -> str:
        """The last part of the name, its variant left out: `lora-r4`."""
        return self.name.removesuffix(f"/{self.variant}").split("/")[-1]

    def is_row(self, row: str) -> bool:
        """Whether `row` is one or more whole parts of the name: `lora-r4`, `mrpc/lora-r8`, `mrpc`."""
        return f"/{row}/" in f"{self.name}/"


def name_of(table: str, settings: Settings, row: str) -> str:
    """`table/base/row`, and the task before the row unless it is E2E: `table2/minilm/mrpc/lora-r8`."""
    task = () if settings.task == "e2e" else (settings.task,)
    return "/".join((table, settings.model, *task, row))


def declare(
    table: str,
    row: str,
    about: str,
    by_scale: dict[str, Settings],
    small_row: str | None = None,
    against: tuple[str, str] | None = None,
    **others: Any,
) -> list[Experiment]:
    """One row at several scales, each named after the model that is trained.

    `about` may contain {model} and {task}. Below `paper` the row is called `small_row`, if its size differs there.
    `against` is (table, row) of the same base and task. At `quick` there is no paper's `cell`.
    """
    experiments = []
    for scale, settings in by_scale.items():
        row_name = row if scale == "paper" else small_row or row
        suffix = f"/{OFFICIAL}" if others.get("variant") == OFFICIAL else ""
        facts = others | ({"cell": None} if scale == "quick" else {})
        facts |= {"against": name_of(against[0], settings, against[1])} if against else {}
        text = about.format(model=settings.model, task=settings.task)
        experiments.append(Experiment(name_of(table, settings, row_name) + suffix, text, settings, scale, **facts))
    return experiments
