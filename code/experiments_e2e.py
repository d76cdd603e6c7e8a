"""GPT-2 on E2E: the rows of Table 3, the authors' released adapters, and the choice of learning rates.

Sources: Table 11 and appendix D.3 of arXiv 2106.09685v2; examples/NLG of microsoft/LoRA at c4593f0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from settings import OFFICIAL, Experiment, Settings

# GPT-2 on E2E: Table 11 (paper) and README of examples/NLG (official code).
E2E = Settings(
    task="e2e", model="gpt2-medium", method="full", learning_rate=2e-4, epochs=5, batch_size=8, warmup_steps=500
)  # fmt: skip
E2E_OFFICIAL_CODE = {"length_penalty": 0.8, "keep": "last"}
# Table 3 takes full fine-tuning from Li & Liang (2021): its learning rate is the default of gpt2/train_e2e.py of
# XiangLi1999/PrefixTuning at 048d236, and all that is taken from there. Table 11's is LoRA's; full fine-tuning at
# LoRA's rate is a mistake of its own (experiments_pitfalls.py).
FULL_LEARNING_RATE = 5e-5
LORA = {"method": "lora", "alpha": 32.0, "lora_dropout": 0.1, "targets": ("query", "value")}

# What the smaller scales replace. One epoch instead of five keeps a row under 45 minutes on two
# cores; the learning rates are those with the lowest dev loss among `learning-rate/e2e/*`.
E2E_CPU = {"model": "gpt2-mini", "epochs": 1, "warmup_steps": 100, "keep": "last"}
E2E_QUICK = {"task": "e2e-builtin", "model": "gpt2-mini", "epochs": 1, "warmup_steps": 20, "keep": "last"}
CPU_LEARNING_RATES = {"full": 2e-3, "lora": 8e-3}
LEARNING_RATE_GRID = {"full": (5e-4, 1e-3, 2e-3, 4e-3), "lora": (2e-3, 4e-3, 8e-3, 1.6e-2)}
PAPER_GRID = {"full": (2.5e-5, 5e-5, 1e-4, 2e-4), "lora": (1e-4, 2e-4, 4e-4, 8e-4)}  # around the rates of Table 3
LEARNING_RATE_ROWS = 8_000

# Table 3's cells of the published paper, by the model's name in the table.
TABLE3_CELLS = {
    ("gpt2-medium", "full"): ("GPT-2 M", "FT", "354.92M"),
    ("gpt2-medium", "lora-r4"): ("GPT-2 M", "LoRA", "0.35M"),
    ("gpt2-large", "full"): ("GPT-2 L", "FT", "774.03M"),
    ("gpt2-large", "lora-r4"): ("GPT-2 L", "LoRA", "0.77M"),
}


def smaller(learning_rate: float, **changes: Any) -> dict[str, dict[str, Any]]:
    """What an experiment on E2E replaces at the smaller scales."""
    rate = {"learning_rate": learning_rate, **changes}
    return {"cpu": E2E_CPU | rate, "quick": E2E_QUICK | rate}


def learning_rates(row: str, base: Settings, grid: tuple[float, ...], **changes: Any) -> list[Experiment]:
    """A row's candidates at the smaller scales: compared by the dev loss after one short training."""
    found = []
    for rate in grid:
        search = {"evaluate": "selection", "learning_rate": rate}
        at = smaller(rate, **changes, evaluate="selection")
        cpu, quick = at["cpu"] | {"train_rows": LEARNING_RATE_ROWS}, at["quick"] | {"train_rows": 500}
        name, rows = f"learning-rate/e2e/{row}/{rate:g}", f"{LEARNING_RATE_ROWS:,} training rows"
        about = f"dev loss of {row} at {rate:g} on {rows}"
        settings = replace(base, **search, train_rows=LEARNING_RATE_ROWS)
        found.append(Experiment(name, about, settings, {"cpu": cpu, "quick": quick}, scales=("quick", "cpu")))
    return found


def paper_learning_rates(row: str, base: Settings, grid: tuple[float, ...]) -> list[Experiment]:
    """A row's candidates at `paper` scale: compared by the dev loss after an epoch."""
    return [
        Experiment(
            f"learning-rate/e2e/{row}/{rate:g}", f"dev loss of {row} at {rate:g} after an epoch",
            replace(base, learning_rate=rate, epochs=1, evaluate="selection", keep="last"), scales=("paper",),
        )
        for rate in grid
    ]  # fmt: skip


def _learning_rates() -> list[Experiment]:
    """Of LoRA and full fine-tuning: of the small model, and around the published rates that of the paper."""
    bases = {"full": E2E, "lora": replace(E2E, rank=4, **LORA)}
    found = []
    for method, base in bases.items():
        found += learning_rates(method, replace(base, model="gpt2"), LEARNING_RATE_GRID[method])
        found += paper_learning_rates(method, base, PAPER_GRID[method])
    return found


def _table3() -> list[Experiment]:
    found = []
    for model, ranks in (("gpt2", (2, 4, 8)), ("gpt2-medium", (4, 8)), ("gpt2-large", (4,))):
        rows = {"full": replace(E2E, model=model, learning_rate=FULL_LEARNING_RATE)}
        rows |= {f"lora-r{r}": replace(E2E, model=model, rank=r, **LORA) for r in ranks}
        for row, settings in rows.items():
            cell, changes = TABLE3_CELLS.get((model, row)), smaller(CPU_LEARNING_RATES[settings.method])
            about = "full fine-tuning" if row == "full" else f"LoRA r={settings.rank} on query and value"
            name = f"table3/{model}/{row}"
            found.append(Experiment(name, f"{about} of {model} on E2E", settings, changes, cell=cell))
            official, about = replace(settings, **E2E_OFFICIAL_CODE), f"{about}, as the official code runs it"
            found.append(Experiment(f"{name}/{OFFICIAL}", about, official, changes, cell=cell, variant=OFFICIAL))
    return found


def _released() -> list[Experiment]:
    return [
        Experiment(
            f"released/{model}/e2e",
            f"the authors' own adapter of {model} decoded and scored, without training",
            replace(E2E, model=model, rank=4, **LORA | {"method": "released"}),
            scales=("paper",),
            cell=TABLE3_CELLS[model, "lora-r4"],
        )
        for model in ("gpt2-medium", "gpt2-large")
    ]


E2E_EXPERIMENTS = (
    *_table3(),
    *_released(),
    *_learning_rates(),
)
