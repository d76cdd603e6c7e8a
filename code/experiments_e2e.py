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
LORA = {"method": "lora", "alpha": 32.0, "lora_dropout": 0.1, "targets": ("query", "value")}

# What the smaller scales replace. One epoch instead of five keeps a row under 45 minutes on two
# cores; the learning rates are those with the lowest dev loss among `learning-rate/e2e/*`.
E2E_CPU = {"model": "gpt2-mini", "epochs": 1, "warmup_steps": 100, "keep": "last"}
E2E_QUICK = {"task": "e2e-builtin", "model": "gpt2-mini", "epochs": 1, "warmup_steps": 20, "keep": "last"}
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
            f"the authors' own adapter of {model} decoded and scored, without training",
            replace(E2E, model=model, rank=4, **LORA | {"method": "released"}),
            only="paper",
            cell=TABLE3_CELLS[model, "lora-r4"],
        )
        for model in ("gpt2-medium", "gpt2-large")
    ]


def _learning_rates() -> list[Experiment]:
    found = []
    for method, rates in LEARNING_RATE_GRID.items():
        base = replace(E2E, model="gpt2", rank=4, **LORA) if method == "lora" else replace(E2E, model="gpt2")
        for rate in rates:
            search = {"evaluate": "selection", "learning_rate": rate, "train_rows": LEARNING_RATE_ROWS}
            found.append(
                Experiment(
                    f"learning-rate/e2e/{method}/{rate:g}",
                    f"dev loss of {method} at {rate:g} on {LEARNING_RATE_ROWS:,} training rows",
                    replace(base, **search),
                    {"cpu": E2E_CPU | search, "quick": E2E_QUICK | search | {"train_rows": 500, "epochs": 1}},
                )
            )
    return found


E2E_EXPERIMENTS = (*_table3(), *_released(), *_learning_rates())
