"""What an experiment is: its settings, its name, and what a smaller scale replaces.

The lists of experiments are `experiments_*.py`; `experiments.py` finds them by name.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

SCALES = ("quick", "cpu", "paper")
OFFICIAL = "official-code"  # the variant of an experiment that follows the official code


@dataclass(frozen=True)
class Settings:
    """Everything besides the seed that decides a run's result."""

    task: str
    model: str
    method: str
    learning_rate: float
    epochs: int
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
    # the methods beside LoRA
    top_layers: int | None = None  # partial fine-tuning: so many of the last layers
    bottleneck: int | None = None  # width of an adapter
    dropped_layers: int = 0  # AdapterDrop: so many of the first layers have no adapter
    prefix_tokens: int | None = None  # PreEmbed and PreLayer: trained positions before the input
    # rank over time
    rank_stages: tuple[int, ...] = ()  # the total rank of each stage: (2, 4, 6, 8)
    stage_trigger: str | None = None  # "fixed": stages of equal length; "plateau": of the validation loss
    old_stages: float = 0.0  # learning rate of earlier stages, as a fraction: 0 frozen, 1 unfrozen
    schedule_every: int | None = None  # steps between validations for a plateau, or between reallocations
    patience: int = 2  # validations without the improvement that a plateau takes
    min_improvement: float = 0.0  # in nats
    grace: int = 0  # validations after a new stage that cannot end it
    rank_budget: int | None = None  # adaptive rank: pairs of rank 1 over all adapted matrices together
    # optimisation
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 0.0  # 0: no clipping
    decay: str = "all"  # what weight decay falls on; or "matrices": neither biases nor LayerNorms
    precision: str = "float32"  # or "bfloat16" autocast; or "auto": bfloat16 where the machine has it
    gradient_checkpointing: bool = False
    train_rows: int | None = None  # None: all; else the first of a fixed shuffle
    keep: str = "best-epoch"  # or "last"; a GLUE record has both the best epoch and all others
    evaluate: str = "test"  # or "selection": only rows on which settings may be chosen, never the reported ones
    start_from: str | None = None  # the experiment whose trained adapter this one starts with
    # E2E
    protocol: str = "lora"
    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram: int = 4
    max_new_tokens: int = 64
    # GLUE
    max_length: int | None = None
    head_dropout: float | None = None  # DeBERTa's cls_dropout; None: the model's own
    # mistakes of earlier reproductions, measured by the experiments `pitfalls/...`
    train_head: bool = True  # GLUE: else the new head stays as it was drawn
    prompt_loss: bool = False  # E2E: the context carries a loss as well, `jlm` of the official code
    end_loss: bool = True  # E2E: the end token carries a loss, from which the model learns to stop
    new_tokens: bool = False  # E2E: the context stands between two new tokens, whose random rows LoRA leaves frozen
    transposed_init: bool = False  # A is drawn as if it were stored (d_in, rank): its fan-in is the rank, not d_in
    packed_pair: bool = False  # GPT-2: one pair over the whole of c_attn, so that the key is adapted too
    learning_rate_schedule: str = "linear"  # or "constant": neither warm-up nor decay
    single_reference: bool = False  # E2E: scored against the first reference of each input only
    pad_to_maximum: bool = False  # every batch, to max_length or E2E's 512 tokens (the model's positions, if fewer)


@dataclass(frozen=True)
class Experiment:
    """One row of one table by name: its settings at `paper` scale, and what the smaller scales change."""

    name: str
    about: str
    paper: Settings
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)  # scale -> settings that differ
    scales: tuple[str, ...] = SCALES  # at which it exists: not all has a counterpart on small machines
    cell: tuple[str, str, str] | None = None  # the paper's row: (model, method, trainable as printed)
    variant: str = "paper"  # or OFFICIAL
    against: str | None = None  # what it is measured against, where that is not full fine-tuning: plain LoRA, say

    @property
    def table(self) -> str:
        return self.name.split("/")[0]

    @property
    def row(self) -> str:
        """The last part of the name, its variant left out: `lora-r4`."""
        return self.name.removesuffix(f"/{self.variant}").split("/")[-1]

    def is_row(self, row: str) -> bool:
        """Whether these parts of the name follow each other in it: `lora-r4`, `mrpc/lora-r8`, `mrpc`."""
        return f"/{row}/" in f"{self.name}/"
