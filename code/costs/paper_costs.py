"""What the runs of Tables 2 and 3 cost at `paper` scale, by arithmetic -> `data/paper_costs.csv`.

The numbers are those of `reproduce.py run NAME --dry-run` for an A100. They are no measurement, unless the steps of
one are in `results/gpu` (`estimate.py`). Parameters are counted on models without weights. The README, the report and
the poster take the cost of the tables and the bytes of an adapter from here.
"""

from __future__ import annotations

import pandas as pd

import files
from costs.estimate import estimate
from experiments.catalogue import select
from experiments.settings import Experiment
from files import write_atomically


def chosen() -> list[Experiment]:
    """All experiments of Table 3; full fine-tuning and LoRA r=8 of Table 2."""
    return select("table3", "paper") + [e for e in select("table2", "paper") if e.row in ("full", "lora-r8")]


def row(experiment: Experiment) -> dict[str, str]:
    """Parameters, A100 minutes and gigabytes of one run; `trainable` includes a new head."""
    settings = experiment.settings
    cost = estimate(settings, "paper")
    return {
        "experiment": experiment.name, "model": settings.model, "method": settings.method,
        "trainable": str(cost.trainable), "total": str(cost.total), "steps": str(cost.steps),
        "minutes": f"{cost.minutes:.0f}", "gigabytes": f"{cost.gigabytes:.1f}",
    }  # fmt: skip


def write_costs() -> str:
    """Write the file; say how many experiments it has."""
    path = files.DATA / "paper_costs.csv"
    frame = pd.DataFrame(map(row, chosen()))
    write_atomically(path, frame.to_csv(index=False, lineterminator="\n"))
    return f"{len(frame)} experiments in {path}"
