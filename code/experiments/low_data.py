"""MNLI with few training rows: Table 16, whose settings are Table 17's.

    table16/roberta-base/mnli/100/lora-r8, .../1000/full, .../10000/prelayer    at `paper`
    table16/minilm/mnli/100/lora-r8, .../8000/full                              at `cpu`
    learning-rate/minilm/mnli/1000/lora-r8/0.002                                its grids

The paper asks this of GPT-3, which is not public: here it is asked of encoders. Batches and epochs at `paper`, LoRA's
rank and PreLayer's length (l_p + l_i) are Table 17's; the rates are those of the encoder, since GPT-3's do not carry
over: Table 9's for LoRA on MNLI, Table 2's for full fine-tuning, the middle of a grid for PreLayer. The rows are the
first of one fixed shuffle: a smaller set is part of a larger one, and all seeds share it. PrefixEmbed has no row: an
encoder's words would read the text from the prefix's positions too, which `methods/prefixes.py` does not compute.

Like Table 17, each method has one rate for all sizes. At `cpu` it is the best of its grid on the held-out tenth, with
1,000 training rows.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments import glue
from experiments.settings import Experiment, Settings, declare

MNLI = replace(glue.GLUE, task="mnli", max_length=128)
ROWS: dict[str, dict[str, Any]] = {  # with the rate at `paper`
    "full": {},
    "lora-r8": glue.LORA | {"rank": 8, "alpha": 16.0, "learning_rate": 5e-4},
    "prelayer": {"method": "prelayer", "prefix_tokens": 16, "learning_rate": 1e-2},
}
SIZES = {  # scale -> training rows -> batch, epochs
    "paper": {100: (20, 40), 1_000: (20, 40), 10_000: (100, 4)},
    "cpu": {100: (16, 20), 1_000: (16, 10), 8_000: (16, 2)},  # a subset of 9,000 rows has no 10,000
}
RATES = {"full": 1e-4, "lora-r8": 2e-3, "prelayer": 3e-2}  # at `cpu`
GRIDS = {
    "full": (2.5e-5, 5e-5, 1e-4, 2e-4),
    "lora-r8": (5e-4, 1e-3, 2e-3, 4e-3),
    "prelayer": (3e-3, 1e-2, 3e-2, 1e-1),
}
SEARCHED_ROWS = 1_000


def _settings(scale: str, row: str, size: int) -> Settings:
    batch, epochs = SIZES[scale][size]
    small = glue.CPU | {"learning_rate": RATES[row]} if scale == "cpu" else {}
    return replace(MNLI, **ROWS[row] | small | {"batch_size": batch, "epochs": epochs, "train_rows": size})


def _table16() -> list[Experiment]:
    experiments = []
    for scale, sizes in SIZES.items():
        for size in sizes:
            for row in ROWS:
                about = f"{row} of {{model}} on {size:,} rows of {{task}}"
                experiments += declare("table16", f"{size}/{row}", about, {scale: _settings(scale, row, size)})
    return experiments


def _learning_rates() -> list[Experiment]:
    candidates = []
    for row, grid in GRIDS.items():
        base = replace(_settings("cpu", row, SEARCHED_ROWS), evaluate="selection")
        for rate in grid:
            about = f"{row} at {rate:g}, {{model}} on {SEARCHED_ROWS:,} rows of {{task}}, scored on held-out rows"
            settings = replace(base, learning_rate=rate)
            name = f"{SEARCHED_ROWS}/{row.removesuffix('-r8')}/{rate:g}"
            candidates += declare("learning-rate", name, about, {"cpu": settings})
    return candidates


LOW_DATA_EXPERIMENTS = (*_table16(), *_learning_rates())
