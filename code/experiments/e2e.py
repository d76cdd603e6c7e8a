"""GPT-2 on E2E: the rows of Table 3, the authors' released adapters, and the choice of learning rates.

Sources: Table 11 and appendix D.3 of arXiv 2106.09685v2; examples/NLG of microsoft/LoRA at c4593f0.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments.settings import OFFICIAL, Experiment, Settings, declare

# GPT-2 on E2E: Table 11 (paper) and README of examples/NLG (official code).
E2E = Settings(
    task="e2e", model="gpt2-medium", method="full", learning_rate=2e-4, epochs=5, batch_size=8, warmup_steps=500,
    precision="tf32", official_text=True,
)  # fmt: skip
OFFICIAL_CODE = {"length_penalty": 0.8, "keep": "last", "precision": "float32"}
# Table 3 takes full fine-tuning from Li & Liang (2021). Only the learning rate is theirs here: the default of
# gpt2/train_e2e.py of XiangLi1999/PrefixTuning at 048d236. Table 11's rate is LoRA's; full fine-tuning at LoRA's rate
# is a mistake of its own (pitfalls.py).
FULL_LEARNING_RATE = 5e-5
LORA = {"method": "lora", "alpha": 32.0, "lora_dropout": 0.1, "targets": ("query", "value")}

# What the smaller scales replace. One epoch instead of five keeps a row under 45 minutes on two
# cores; the learning rates are those with the lowest dev loss among `learning-rate/gpt2-mini/*`.
E2E_CPU = {
    "model": "gpt2-mini", "epochs": 1, "warmup_steps": 100, "keep": "last", "precision": "float32",
    "official_text": False,
}  # fmt: skip
E2E_QUICK = E2E_CPU | {"task": "e2e-builtin", "warmup_steps": 20}
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


def at_scales(paper: Settings, learning_rate: float, **changes: Any) -> dict[str, Settings]:
    """An experiment on E2E at every scale; the smaller scales have `learning_rate` and `changes`."""
    small = {"learning_rate": learning_rate, **changes}
    return {"paper": paper, "cpu": replace(paper, **E2E_CPU | small), "quick": replace(paper, **E2E_QUICK | small)}


def learning_rates(row: str, base: Settings, grid: tuple[float, ...], **changes: Any) -> list[Experiment]:
    """A row's candidate rates at the smaller scales, compared by the dev loss after one short training."""
    candidates = []
    for rate in grid:
        by_scale = at_scales(base, rate, **changes, evaluate="selection")
        rows = {"cpu": LEARNING_RATE_ROWS, "quick": 500}
        by_scale = {scale: replace(by_scale[scale], train_rows=number) for scale, number in rows.items()}
        about = f"dev loss of {row} at {rate:g}, {{model}}, on few training rows"
        candidates += declare("learning-rate", f"{row}/{rate:g}", about, by_scale)
    return candidates


def paper_learning_rates(row: str, base: Settings, grid: tuple[float, ...]) -> list[Experiment]:
    """A row's candidate rates at `paper` scale, compared by the dev loss after an epoch."""
    candidates = []
    for rate in grid:
        settings = replace(base, learning_rate=rate, epochs=1, evaluate="selection", keep="last")
        about = f"dev loss of {row} at {rate:g}, {{model}}, after an epoch"
        candidates += declare("learning-rate", f"{row}/{rate:g}", about, {"paper": settings})
    return candidates


def _learning_rates() -> list[Experiment]:
    """Candidates for LoRA and full fine-tuning: the small model's, and the paper's model around the published rates."""
    candidates = []
    for method, base in {"full": E2E, "lora": replace(E2E, rank=4, **LORA)}.items():
        candidates += learning_rates(method, base, LEARNING_RATE_GRID[method])
        candidates += paper_learning_rates(method, base, PAPER_GRID[method])
    return candidates


def _table3() -> list[Experiment]:
    experiments = []
    for model, ranks in (("gpt2", (2, 4, 8)), ("gpt2-medium", (4, 8)), ("gpt2-large", (4,))):
        rows = {"full": replace(E2E, model=model, learning_rate=FULL_LEARNING_RATE)}
        rows |= {f"lora-r{r}": replace(E2E, model=model, rank=r, **LORA) for r in ranks}
        for row, settings in rows.items():
            cell, rate = TABLE3_CELLS.get((model, row)), CPU_LEARNING_RATES[settings.method]
            method = "full fine-tuning" if row == "full" else f"LoRA r={settings.rank} on query and value"
            about = f"{method} of {{model}} on {{task}}"
            experiments += declare("table3", row, about, at_scales(settings, rate), cell=cell)
            official = at_scales(replace(settings, **OFFICIAL_CODE), rate)
            about += ", as the official code runs it"
            experiments += declare("table3", row, about, official, cell=cell, variant=OFFICIAL)
    return experiments


def _released() -> list[Experiment]:
    return [
        Experiment(
            f"released/{model}/e2e", f"the authors' own adapter of {model} decoded and scored, without training",
            replace(E2E, model=model, rank=4, precision="float32", **LORA | {"method": "released"}), "paper",
            cell=TABLE3_CELLS[model, "lora-r4"],
        )
        for model in ("gpt2-medium", "gpt2-large")
    ]  # fmt: skip


E2E_EXPERIMENTS = (*_table3(), *_released(), *_learning_rates())
