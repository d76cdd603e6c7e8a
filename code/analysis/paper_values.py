"""The paper's own numbers, from `data/paper.csv`: table, row (model, method, trainable parameters), metric, version.

They are as printed in arXiv:2106.09685v2, or in the ICLR 2022 version where a row says so, but times 100 where the
paper prints fractions. A ± is the paper's own: Table 3 calls it a confidence interval and gives no level.

    paper_value(find("table3/gpt2-medium/lora-r4"), "BLEU")    # PaperValue(value="70.4", spread="0.1", ...)
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from experiments.settings import Experiment
from files import read_table
from tasks.catalogue import TASKS

FIRST_VERSION = "arXiv v2"  # the one that tables show where two versions differ
FULL = "FT"
OF_GPT3 = ("table5", "table6", "table16")  # tables whose rows are GPT-3's in the paper; it is not public
TABLE_16 = {"full": "Fine-Tune", "lora": "LoRA", "prelayer": "PrefixLayer"}  # its methods
PRINTED_ROWS = {100: "100", 1_000: "1k", 10_000: "10k"}  # training rows as Table 16 prints them
FRACTIONS = ("table13", "table14")  # METEOR and TER stand in `data/paper.csv` as these print them
PRIOR_WORK, OTHER_METRIC = "*", "‡"
PRIOR_WORK_MEANS = "A star at a row of the paper: its numbers are from prior work."
OTHER_METRIC_MEANS = "‡: probably F1 and not accuracy, from prior work; not to be compared."


@dataclass(frozen=True)
class PaperValue:
    """A cell of the paper as it is printed."""

    row: str  # model, method, trainable parameters; starred as in the paper
    value: str  # as printed
    spread: str  # empty where the paper prints none
    version: str
    over_full: str | None  # minus the paper's full fine-tuning of the same model, with its sign
    share: float | None  # of the model's parameters that the row trains, in percent
    note: str

    def __str__(self) -> str:
        return as_printed(self.value, self.spread, self.note)


def as_printed(value: str, spread: str, note: str) -> str:
    """The paper's number with its ±, and a mark if it is of another metric than the column's."""
    return value + (f" ±{spread}" if spread else "") + (OTHER_METRIC if "do not compare" in note else "")


def starred(row: dict[str, str]) -> str:
    """The method of a row of `data/paper.csv`, with the paper's star where its numbers are from prior work."""
    return row["method"] + (PRIOR_WORK if row["prior_work"] == "yes" else "")


@cache
def _rows() -> dict[tuple[str, ...], dict[str, str]]:
    rows = [row for row in read_table("paper.csv") if row["version"] == FIRST_VERSION]
    for i, row in enumerate(rows):
        if row["table"] in FRACTIONS and not row["metric"].startswith("BLEU"):
            rows[i] = row | {"value": f"{100 * float(row['value']):.0f}"}
    return {tuple(row[key] for key in ("table", "model", "method", "trainable", "metric")): row for row in rows}


def _row_of(experiment: Experiment) -> tuple[str, ...]:
    """(table, model, method, trainable) of the paper's row that it repeats; () for none.

    The tables OF_GPT3 are an encoder's here, with the same matrices, ranks and training rows.
    """
    settings = experiment.settings
    if experiment.cell:
        return (TASKS[settings.task].paper_table, *experiment.cell)
    if experiment.table == "table16":
        return (experiment.table, "GPT-3 175B", TABLE_16[settings.method], "")
    if experiment.table in OF_GPT3:
        matrices = "+".join(f"W{target[0]}" for target in settings.targets)
        trainable = "18M" if experiment.table == "table5" else ""
        return (experiment.table, "GPT-3 175B", f"LoRA {matrices} r={settings.rank}", trainable)
    return ()


def paper_value(experiment: Experiment, metric: str) -> PaperValue | None:
    """The paper's number for the experiment's row and a metric of its task; None where it has none."""
    name, rows = TASKS[experiment.settings.task].paper_metric(metric), experiment.settings.train_rows
    if experiment.table == "table16":
        name += f", {PRINTED_ROWS.get(rows, rows)} training rows"
    row = _rows().get((*_row_of(experiment), name))
    if row is None:
        return None
    full = [
        r for r in _rows().values() if all(r[k] == row[k] for k in ("table", "model", "metric")) and r["method"] == FULL
    ]
    over_full = share = None
    if full and full[0]["trainable"] and row["trainable"]:
        share = 100 * float(row["trainable"].rstrip("M")) / float(full[0]["trainable"].rstrip("M"))
    if full and row["method"] != FULL:
        decimals = len(row["value"].partition(".")[2])
        over_full = f"{float(row['value']) - float(full[0]['value']):+.{decimals}f}"
    row_name = " ".join((row["model"], starred(row), row["trainable"])).strip()
    return PaperValue(row_name, row["value"], row["spread"], row["version"], over_full, share, row["note"])
