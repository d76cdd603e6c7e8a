"""DART and WebNLG: Tables 13 and 14, every method of theirs.

    table14/gpt2-medium/webnlg/lora-r4, table13/gpt2-large/dart/full    at `paper`
    table14/smollm2-135m/webnlg-dev/lora-r4                             at `cpu`: parts of the development files
    table14/gpt2-mini/triples-builtin/lora-r4                           at `quick`

Settings are Table 11's. As in Table 3, full fine-tuning and the methods beside LoRA have their own learning rates, from
the source that `other_methods.py` names; what else Table 11 prints for a data set counts for all of them. Below `paper`
the rates are those that were chosen on E2E.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments import e2e, other_methods, smollm2
from experiments.settings import Experiment, Settings, declare

TABLE_11 = {  # task -> its table there, what Table 11 has for it and not for E2E
    "dart": ("table13", {"length_penalty": 0.8, "weight_decay": 0.0, "label_smoothing": 0.0}),
    "webnlg": ("table14", {"length_penalty": 0.8}),
}
PREFIX = {"dart": "PrefLayer", "webnlg": "Prefix"}  # PreLayer's name in its table
PRINTED = {"25.19M": "24M", "11.09M": "11M", "23.00M": "23M"}  # trainable parameters: in Table 3, here
FULL = {"gpt2-medium": "354M", "gpt2-large": "774M"}
ROWS = ("FT^Top2", "Adapter^L", "PreLayer")  # of Table 3's methods beside LoRA


def _lora(task: str) -> dict[str, Any]:
    return e2e.LORA | {"rank": 4} | ({"lora_dropout": 0.0} if task == "dart" else {})


def _paper_rows(task: str) -> list[tuple[str, Settings, tuple[str, str, str]]]:
    """(row, settings, the paper's cell)."""
    base = replace(e2e.E2E, task=task, official_text=False, **TABLE_11[task][1])
    rows = []
    for model, full_size in FULL.items():
        full = replace(base, model=model, learning_rate=e2e.FULL_LEARNING_RATE)
        name, lora_size = other_methods.NAMES[model], e2e.TABLE3_CELLS[model, "lora-r4"][2]
        rows.append(("full", full, (name, "FT", full_size)))
        rows.append(("lora-r4", replace(base, model=model, **_lora(task)), (name, "LoRA", lora_size)))
    for row, model, method, size, _, rate, cell in other_methods.E2E_ROWS:
        if cell and cell[0] in ROWS:
            settings = replace(base, model=model, method=method, learning_rate=rate, **size)
            printed = PREFIX[task] if method == "prelayer" else cell[0], PRINTED.get(cell[1], cell[1])
            rows.append((row, settings, (other_methods.NAMES[model], *printed)))
    return rows


def _experiments() -> list[Experiment]:
    experiments = []
    for task, (table, changes) in TABLE_11.items():
        for row, settings, cell in _paper_rows(task):
            about = f"{settings.method} of {{model}} on {{task}}"
            experiments += declare(table, row, about, {"paper": settings}, cell=cell)
        cpu = smollm2.CPU | changes | {"task": f"{task}-dev", "train_rows": None, "warmup_steps": 50}
        quick = e2e.E2E_QUICK | changes | {"task": "triples-builtin"}
        for row, method in {"full": {}, "lora-r4": _lora(task)}.items():
            kind = method.get("method", "full")
            by_scale = {"cpu": replace(smollm2.PAPER, **method | cpu, learning_rate=smollm2.RATES[kind])}
            if task == "webnlg":
                by_scale["quick"] = replace(e2e.E2E, **method | quick, learning_rate=e2e.CPU_LEARNING_RATES[kind])
            experiments += declare(table, row, f"{kind} of {{model}} on {{task}}", by_scale)
    return experiments


TRIPLES_EXPERIMENTS = tuple(_experiments())
