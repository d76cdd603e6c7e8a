"""What the runs of Tables 2 and 3 cost at `paper` scale, by arithmetic -> `data/paper_costs.csv`.

python code/make_costs.py

The numbers are those of `reproduce.py run NAME --scale paper --dry-run`: operations over what an A100 reaches, good to
about a factor of two, in bfloat16 (DeBERTa) less surely, and not a measurement. Parameters are counted on the models'
architectures, without weights. The README, the report and the poster take the cost of the tables and the bytes of an
adapter from here.
"""

from __future__ import annotations

import pandas as pd

import paths
from costs import estimate
from experiments import resolve, select
from records import write_atomically
from settings import Experiment


def chosen() -> list[Experiment]:
    """Table 3, and of Table 2 what the paper compares first: full fine-tuning and LoRA."""
    return select("table3", "paper") + [e for e in select("table2", "paper") if e.row in ("full", "lora-r8")]


def row(experiment: Experiment) -> dict[str, str]:
    """Parameters, A100 minutes and gigabytes of one run; what is trained counts a new head."""
    settings = resolve(experiment, "paper")
    cost = estimate(settings, "paper")
    return {
        "experiment": experiment.name, "model": settings.model, "method": settings.method,
        "trainable": str(cost.trainable), "total": str(cost.total), "steps": str(cost.steps),
        "minutes": f"{cost.minutes:.0f}", "gigabytes": f"{cost.gigabytes:.1f}",
    }  # fmt: skip


def main() -> None:
    frame = pd.DataFrame(map(row, chosen()))
    write_atomically(paths.DATA / "paper_costs.csv", frame.to_csv(index=False, lineterminator="\n"))
    print(f"{len(frame)} experiments in {paths.DATA / 'paper_costs.csv'}")


if __name__ == "__main__":
    main()
