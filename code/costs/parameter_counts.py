"""Trainable parameters of Tables 2 and 3, as printed and as counted from each row's settings: `count_table()`.

Counted on models without weights. A head is counted apart: on GLUE the paper trains one with every
method and does not count it (issue 16 of microsoft/LoRA). Where the numbers disagree, data/count_notes.csv explains.
"""

from __future__ import annotations

import pandas as pd

from experiments.catalogue import select
from experiments.settings import Settings
from files import read_table
from methods.catalogue import apply_method, count_trained
from models import architecture
from tasks.catalogue import TASKS

CELL = ("model", "method", "trainable")
ROWS = {"table2": ["mrpc"], "table3": None}  # any task stands for a row of Table 2; this one's head has two outputs
SIZES = {  # setting -> the phrase for it
    "rank": "rank {}", "bottleneck": "bottleneck {}", "dropped_layers": "none in the first {} layers",
    "prefix_tokens": "{} tokens", "top_layers": "{} layers",
}  # fmt: skip


def trained_parameters(settings: Settings) -> tuple[int, int]:
    """(parameters without the head, parameters of the head) that a run with these settings trains."""
    model = architecture(settings.model, TASKS[settings.task].outputs)
    apply_method(model, settings)
    return count_trained(model)[:2]


def rounded(count: int, like: str) -> str:
    """The count in millions, with as many decimals as `like`: 294912 like "0.8M" is "0.3M"."""
    decimals = len(like.removesuffix("M").partition(".")[2])
    return f"{count / 1e6:.{decimals}f}M"


def count_table() -> pd.DataFrame:
    """Every row of Tables 2 and 3, in the paper's order; `agrees` is whether `counted` is `printed` when rounded."""
    experiments = {e.cell: e for table, rows in ROWS.items() for e in select(table, "paper", rows)}
    notes = {tuple(row[key] for key in CELL): row["note"] for row in read_table("count_notes.csv")}
    printed = [row for row in read_table("paper.csv") if row["table"] in ROWS]
    lines = []
    for table, *cell in dict.fromkeys((row["table"], *(row[key] for key in CELL)) for row in printed):
        settings = experiments[tuple(cell)].settings
        counted, head = trained_parameters(settings)
        sizes = [phrase.format(size) for name, phrase in SIZES.items() if (size := getattr(settings, name))]
        lines.append({
            "table": table, "model": cell[0], "method": cell[1], "setting": ", ".join(sizes), "printed": cell[2],
            "counted": counted, "agrees": rounded(counted, cell[2]) == cell[2], "head": head,
            "note": notes.get(tuple(cell), ""),
        })  # fmt: skip
    return pd.DataFrame(lines)
