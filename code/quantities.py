"""What a record holds that a table shows: which numbers, in which unit, by which rule, rounded how.

    quantities(resolve(find("table3/gpt2/lora-r4"), "cpu"))    # BLEU, NIST, ..., then what the run cost

Every row of a table is over the same quantities; `printed` is the one place that rounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from settings import Settings
from tasks import TASKS, GlueTask

RULES = {
    "paper": "the best epoch on the split that is reported",
    "honest": "the epoch chosen on held-out training rows",
    "best-epoch": "the epoch with the lowest loss on the dev set",
    "last": "the last epoch",
    "selection": "on rows where settings may be chosen, never the reported ones",
    "cost": "of the whole run",
}
COURSE = (
    "course_BLEU",
    "course_ROUGE_L",
)  # of a course reproduction (edwinlin13), which scored raw text; from 0 to 100
DECIMALS = {  # others: 2
    "NIST": 4, "CIDEr": 4, "dev_loss": 4, "training_minutes": 1, "decoding_minutes": 1, "training_tokens": 0,
}  # fmt: skip
AS_MEASURED = {*DECIMALS, *COURSE, "peak_memory_gib", "mean_words"}  # everything else is shown times 100
MARGIN = 1.0  # a point, of what is shown times 100: differences within it are called equivalent
MARGINS = {"NIST": 0.1, "CIDEr": 0.05}  # which move about so much with a point of BLEU
COSTS = {  # metric -> key of the record, unit
    "training_minutes": ("training_seconds", 60.0),
    "decoding_minutes": ("evaluation_seconds", 60.0),
    "training_tokens": ("training_tokens", 1.0),
    "peak_memory_gib": ("peak_memory_gib", 1.0),
}
OF_TEXTS = ("mean_words", "share_at_cap")  # of the decoded texts


@dataclass(frozen=True)
class Quantity:
    """One number that every record of an experiment has."""

    metric: str
    protocol: str  # what it is measured on and how: E2E's text protocol, GLUE's split
    rule: str  # of RULES: which epoch
    keys: tuple[str, ...]  # where the record has it
    statistic: str  # over seeds: mean or median
    higher_is_better: bool | None = None  # None: not compared
    unit: float = 1.0  # what the record's number is divided by

    @property
    def margin(self) -> float | None:
        return None if self.higher_is_better is None else MARGINS.get(self.metric, MARGIN)

    def of(self, record: dict[str, Any]) -> float | None:
        """Its value in the record; None where it was not measured there (METEOR without Java)."""
        value: Any = record
        for key in self.keys:
            value = None if value is None else value.get(key)
        return None if value is None else value / self.unit


def _unit(metric: str) -> float:
    return 1.0 if metric in AS_MEASURED else 0.01


def quantities(settings: Settings) -> list[Quantity]:
    """Of runs with these settings: first what the tables are about, last what it cost."""
    glue = isinstance(TASKS[settings.task], GlueTask)
    if settings.evaluate == "selection":
        key = "selection_score" if glue else "dev_loss"
        metric = TASKS[settings.task].main_metric if glue else key
        found = [Quantity(metric, "selection", "selection", (key,), "median" if glue else "mean", unit=_unit(metric))]
    else:
        found = _glue(TASKS[settings.task]) if glue else _e2e(settings)
    return found + [Quantity(m, "cost", "cost", (key,), "median", unit=unit) for m, (key, unit) in COSTS.items()]


def _glue(task: GlueTask) -> list[Quantity]:
    """Each metric by both rules, the main one first; of further splits (MNLI mismatched) the main one only."""
    main = task.main_metric
    rules = {"paper": "scores", "honest": "honest_scores"}
    found = [
        Quantity(metric, "validation", rule, (key, metric), "median", task.metrics[metric], _unit(metric))
        for metric in (main, *(m for m in task.metrics if m != main))
        for rule, key in rules.items()
    ]
    further = list(task.validation)[1:]
    return found + [
        Quantity(main, split, "paper", (f"scores_{split}", main), "median", True, _unit(main)) for split in further
    ]


def _e2e(settings: Settings) -> list[Quantity]:
    metrics = TASKS[settings.task].metrics
    protocols = dict.fromkeys((*metrics, *OF_TEXTS), settings.protocol) | dict.fromkeys(COURSE, "course")
    better = metrics | dict.fromkeys(COURSE, True)
    return [
        Quantity(metric, protocol, settings.keep, ("scores", metric), "mean", better.get(metric), _unit(metric))
        for metric, protocol in protocols.items()
    ]


def printed(metric: str, value: float | None, sign: str = "") -> str:
    """The number in table units as it is shown everywhere; empty for None or NaN. `sign="+"`: with its sign."""
    if value is None or value != value:
        return ""
    decimals = DECIMALS.get(metric, 2)
    return f"{round(value, decimals) + 0.0:{sign}.{decimals}f}"  # + 0.0: never -0.00
