"""Rows of results/summary.csv that never were, with the numbers that a test gives them."""

from __future__ import annotations

from typing import Any

from analysis.summary import COLUMNS
from experiments.catalogue import select
from tasks.catalogue import E2E_METRICS, TASKS

TABLES = ("table3", "table2", "table5", "table6", "pitfalls", "rank-over-time", "variants")


def line(experiment: str, each_seed: str, metric: str = "BLEU", scale: str = "cpu", **more: str) -> dict[str, Any]:
    """A row with a value for every seed from 0 on: `each_seed="60.1 60.3"`."""
    values = [float(value) for value in each_seed.split()]
    name, model, *_ = experiment.split("/")
    return dict.fromkeys(COLUMNS, "") | {
        "table": name, "experiment": experiment, "variant": "paper", "scale": scale, "task": "e2e",
        "model": model, "metric": metric, "n": str(len(values)), "seeds": " ".join(map(str, range(len(values)))),
        "each_seed": each_seed, "value": f"{sum(values) / max(len(values), 1):g}", "trainable": "1000",
    } | more  # fmt: skip


def search(rates: dict[str, dict[str, str]]) -> list[dict[str, Any]]:
    """The choice of learning rates: {method: {rate: dev loss}}."""
    return [
        line(f"learning-rate/smollm2-135m/{method}/{rate}", loss, "dev_loss", learning_rate=rate)
        for method, losses in rates.items()
        for rate, loss in losses.items()
    ]


def everything(scale: str = "cpu") -> list[dict[str, Any]]:
    """Every row of every table, measured with three seeds and alike."""
    lines = search({"lora": {"0.004": "1.8", "0.008": "1.7", "0.016": "1.8"}, "full": {"0.001": "1.3", "0.002": "1.2"}})
    for table in TABLES:
        for experiment in select(table, scale):
            settings, task = experiment.settings, TASKS[experiment.settings.task]
            of_row = {"model": settings.model, "task": settings.task, "spread": "0.12", "difference": "-0.12"}
            of_row |= {"difference_low": "-0.34", "difference_high": "+0.10", "verdict": "equivalent"}
            kinds = [(task.main_metric, rule) for rule in task.rules]
            kinds = kinds or [(metric, "last") for metric in (*E2E_METRICS, "training_minutes")]
            seeds = "60.12 60.24 60.36"
            lines += [line(experiment.name, seeds, m, scale=scale, rule=rule, **of_row) for m, rule in kinds]
    return lines
