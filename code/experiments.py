"""Every row of every table by name, as its difference from the paper's settings, for each scale.

A name reads `table/model/row[/variant]`: `table3/gpt2-medium/lora-r4` has the paper's settings,
`table3/gpt2-medium/lora-r4/official-code` those of microsoft/LoRA at c4593f0 wherever the two
disagree. Settings and their sources: arXiv 2106.09685v2, Tables 9 to 12 and appendix D; the
official code's examples/NLG. Experiments are added, never edited.

A scale replaces what a smaller machine cannot do and nothing else: `resolve(name, scale)`.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

SCALES = ("quick", "cpu", "paper")


@dataclass(frozen=True)
class Settings:
    """Everything besides the seed that decides a run's result."""

    task: str
    model: str
    method: str
    learning_rate: float
    epochs: int
    batch_size: int
    warmup_steps: int
    # the method's own
    rank: int | None = None
    alpha: float | None = None
    lora_dropout: float = 0.0
    targets: tuple[str, ...] = ()
    # optimisation
    weight_decay: float = 0.01
    label_smoothing: float = 0.1
    adam_betas: tuple[float, float] = (0.9, 0.999)
    adam_epsilon: float = 1e-6
    max_grad_norm: float = 0.0  # 0: no clipping
    train_rows: int | None = None  # None: all; else the first of a fixed shuffle
    keep: str = "best-epoch"  # by validation loss; or "last"
    evaluate: str = "test"  # or "dev-loss": choose settings without touching the test set
    # E2E
    protocol: str = "lora"
    beams: int = 10
    length_penalty: float = 0.9
    no_repeat_ngram: int = 4
    max_new_tokens: int = 64


@dataclass(frozen=True)
class Experiment:
    name: str
    about: str
    paper: Settings
    changes: dict[str, dict[str, Any]] = field(default_factory=dict)  # scale -> settings that differ
    only: str | None = None  # the one scale it exists at, where smaller machines have no counterpart
    cell: tuple[str, str, str] | None = None  # the paper's row: (model, method, trainable as printed)
    variant: str = "paper"  # or "official-code"

    @property
    def table(self) -> str:
        return self.name.split("/")[0]

    @property
    def row(self) -> str:
        return self.name.split("/")[2]


# GPT-2 on E2E: Table 11 (paper) and README of examples/NLG (official code).
E2E = Settings(
    task="e2e", model="gpt2-medium", method="full", learning_rate=2e-4, epochs=5, batch_size=8, warmup_steps=500
)  # fmt: skip
OFFICIAL = "official-code"
E2E_OFFICIAL_CODE = {"length_penalty": 0.8, "keep": "last"}
LORA = {"method": "lora", "alpha": 32.0, "lora_dropout": 0.1, "targets": ("query", "value")}

# What the smaller scales replace. One epoch instead of five keeps a row under 45 minutes on two
# cores; the learning rates are those with the lowest dev loss among `learning-rate/e2e/*`.
E2E_CPU = {"model": "gpt2-mini", "epochs": 1, "warmup_steps": 100, "keep": "last"}
E2E_QUICK = {"task": "e2e-builtin", "model": "gpt2-mini", "epochs": 2, "warmup_steps": 20, "keep": "last"}
CPU_LEARNING_RATES = {"full": 1e-3, "lora": 2e-3}
LEARNING_RATE_GRID = {"full": (5e-4, 1e-3, 2e-3), "lora": (1e-3, 2e-3, 4e-3)}
LEARNING_RATE_ROWS = 8_000

# Table 3's cells of the published paper, by the model's name in the table.
TABLE3_CELLS = {
    ("gpt2-medium", "full"): ("GPT-2 M", "FT", "354.92M"),
    ("gpt2-medium", "lora-r4"): ("GPT-2 M", "LoRA", "0.35M"),
    ("gpt2-large", "full"): ("GPT-2 L", "FT", "774.03M"),
    ("gpt2-large", "lora-r4"): ("GPT-2 L", "LoRA", "0.77M"),
}


def _smaller(settings: Settings) -> dict[str, dict[str, Any]]:
    rate = {"learning_rate": CPU_LEARNING_RATES[settings.method]}
    return {"cpu": E2E_CPU | rate, "quick": E2E_QUICK | rate}


def _table3() -> list[Experiment]:
    found = []
    for model, ranks in (("gpt2", (2, 4, 8)), ("gpt2-medium", (4, 8)), ("gpt2-large", (4,))):
        rows = {"full": replace(E2E, model=model)}
        rows |= {f"lora-r{r}": replace(E2E, model=model, rank=r, **LORA) for r in ranks}
        for row, settings in rows.items():
            cell, smaller = TABLE3_CELLS.get((model, row)), _smaller(settings)
            about = "full fine-tuning" if row == "full" else f"LoRA r={settings.rank} on query and value"
            name = f"table3/{model}/{row}"
            found.append(Experiment(name, f"{about} of {model} on E2E", settings, smaller, cell=cell))
            official, about = replace(settings, **E2E_OFFICIAL_CODE), f"{about}, as the official code runs it"
            found.append(Experiment(f"{name}/{OFFICIAL}", about, official, smaller, cell=cell, variant=OFFICIAL))
    return found


def _released() -> list[Experiment]:
    return [
        Experiment(
            f"released/{model}/e2e",
            f"the authors' own adapter {RELEASED_FILES[model]} decoded and scored, without training",
            replace(E2E, model=model, rank=4, **LORA | {"method": "released"}),
            only="paper",
            cell=TABLE3_CELLS[model, "lora-r4"],
        )
        for model in RELEASED_FILES
    ]


RELEASED_FILES = {"gpt2-medium": "gpt2_md_lora_e2e.pt", "gpt2-large": "gpt2_lg_lora_e2e.pt"}


def _learning_rates() -> list[Experiment]:
    found = []
    for method, rates in LEARNING_RATE_GRID.items():
        base = replace(E2E, model="gpt2", rank=4, **LORA) if method == "lora" else replace(E2E, model="gpt2")
        for rate in rates:
            search = {"evaluate": "dev-loss", "learning_rate": rate, "train_rows": LEARNING_RATE_ROWS}
            found.append(
                Experiment(
                    f"learning-rate/e2e/{method}/{rate:g}",
                    f"dev loss of {method} at {rate:g} on {LEARNING_RATE_ROWS:,} training rows",
                    replace(base, **search),
                    {"cpu": E2E_CPU | search, "quick": E2E_QUICK | search | {"train_rows": 500, "epochs": 1}},
                )
            )
    return found


EXPERIMENTS: dict[str, Experiment] = {e.name: e for e in (*_table3(), *_released(), *_learning_rates())}


def find(name: str) -> Experiment:
    """The experiment of that name; ValueError with the nearest names otherwise."""
    if name not in EXPERIMENTS:
        import difflib

        near = difflib.get_close_matches(name, EXPERIMENTS, n=3, cutoff=0.3)
        raise ValueError(
            f"no experiment is called {name!r}; nearest: {', '.join(near) or 'none'} (see `reproduce.py list`)"
        )
    return EXPERIMENTS[name]


def resolve(experiment: Experiment, scale: str) -> Settings:
    """The settings of the experiment at a scale; ValueError where it does not exist there."""
    if scale not in SCALES:
        raise ValueError(f"scale is one of {', '.join(SCALES)}, not {scale!r}")
    if experiment.only not in (None, scale):
        raise ValueError(f"{experiment.name} exists at scale {experiment.only!r} only, not at {scale!r}")
    return replace(experiment.paper, **experiment.changes.get(scale, {}))


def select(table: str, scale: str, rows: list[str] | None = None, variant: str = "paper") -> list[Experiment]:
    """The table's experiments of a variant at the scale, each piece of work once; `rows` keeps some.

    Two names with the same settings at a smaller scale (gpt2 and gpt2-medium both become
    gpt2-mini) are one piece of work; the first name stands for it.
    """
    there = [e for e in EXPERIMENTS.values() if e.table == table and e.only in (None, scale) and e.variant == variant]
    if not there:
        known = ", ".join(sorted({e.table for e in EXPERIMENTS.values()}))
        raise ValueError(f"no experiment of {table!r} ({variant}) at scale {scale!r}; the tables are {known}")
    unknown = set(rows or ()) - {e.row for e in there}
    if unknown:
        known = ", ".join(dict.fromkeys(e.row for e in there))
        raise ValueError(f"{table} has no row {', '.join(sorted(unknown))}; its rows: {known}")
    chosen: dict[Settings, Experiment] = {}
    for experiment in there:
        if not rows or experiment.row in rows:
            chosen.setdefault(resolve(experiment, scale), experiment)
    return list(chosen.values())
