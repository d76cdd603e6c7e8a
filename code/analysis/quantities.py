"""The numbers of a record that a table shows: which, in which unit, by which rule.

    quantities(find("table3/gpt2-mini/lora-r4").settings)    # BLEU, NIST, ..., then what the run cost

Every row of a table shows the same quantities; `printed` rounds them.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Any

from experiments.settings import Settings
from tasks.catalogue import DEV_LOSS, TASKS, Metric

RULES = {
    "paper": "the best epoch on the split that is reported",
    "held-out": "the epoch chosen on held-out training rows",
    "best-epoch": "the epoch with the lowest loss on the dev set",
    "last": "the last epoch",
    "selection": "on rows where settings may be chosen, never the reported ones",
    "cost": "of the whole run",
}
COSTS = {  # metric -> key of the record, how it is shown
    "training_minutes": ("training_seconds", Metric(unit=60.0, decimals=1)),
    "decoding_minutes": ("evaluation_seconds", Metric(unit=60.0, decimals=1)),
    "training_tokens": ("training_tokens", Metric(unit=1.0, decimals=0)),
    "peak_memory_gib": ("peak_memory_gib", Metric(unit=1.0)),
}

SUBSPACES = {  # of adapters: section 7
    **dict.fromkeys(("first_direction", "shared_by_seeds", "shared_by_random"), Metric(unit=1.0, decimals=3)),
    **dict.fromkeys(("norm_of_weights", "norm_of_update"), Metric(unit=1.0)),
    **dict.fromkeys(("along_update", "along_weights", "along_random"), Metric(unit=1.0, decimals=3)),
    "amplification": Metric(unit=1.0),
}
MARGIN = Metric().margin  # of most metrics


@dataclass(frozen=True)
class Quantity:
    """One number that every record of an experiment has."""

    metric: str
    shown_as: Metric
    protocol: str  # what it is measured on and how: E2E's text protocol, GLUE's split
    rule: str  # of RULES: which epoch
    keys: tuple[str, ...]  # where the record has it
    statistic: str  # over seeds: mean or median
    compared: bool = True  # with a reference

    @property
    def margin(self) -> float | None:
        """Differences within ± this are called equivalent; None if no difference is taken."""
        return self.shown_as.margin if self.compared and self.shown_as.higher_is_better is not None else None

    def of(self, record: dict[str, Any]) -> float | None:
        """The record's value in table units; None if it was not measured (METEOR without Java)."""
        value: Any = record
        for key in self.keys:
            value = None if value is None else value.get(key)
        return None if value is None else value / self.shown_as.unit


def quantities(settings: Settings) -> list[Quantity]:
    """The quantities of runs with these settings: the main score first, costs last."""
    task = TASKS[settings.task]
    if settings.evaluate == "selection":
        metric, key = task.selection
        shown_as = (task.metrics | DEV_LOSS)[metric]
        scores = [Quantity(metric, shown_as, "selection", "selection", (key,), task.statistic, compared=False)]
    else:
        rules, split = task.rules or {settings.keep: "scores"}, task.split or settings.protocol
        if not settings.hold_out:
            rules = {rule: key for rule, key in rules.items() if rule != "held-out"}
        on_dev = settings.evaluate == "dev"

        def score(metric: str, shown_as: Metric, rule: str, key: str) -> Quantity:
            protocol = "dev" if on_dev else shown_as.protocol or split
            return Quantity(metric, shown_as, protocol, rule, (key, metric), task.statistic, compared=not on_dev)

        scores = [
            score(metric, shown_as, rule, key)
            for metric, shown_as in task.metrics.items()
            for rule, key in rules.items()
        ]
        main, first_rule = task.main_metric, next(iter(rules))
        scores += [
            Quantity(main, task.metrics[main], further, first_rule, (f"scores_{further}", main), task.statistic)
            for further in task.further_splits
        ]
    costs = [Quantity(m, shown_as, "cost", "cost", (key,), "median") for m, (key, shown_as) in COSTS.items()]
    return scores + costs


def printed(metric: str, value: float | None, sign: str = "") -> str:
    """A number in table units as text, rounded as everywhere; empty for None or NaN."""
    known = chain(
        ({m: shown_as for m, (_, shown_as) in COSTS.items()} | DEV_LOSS | SUBSPACES,),
        (t.metrics for t in TASKS.values()),
    )
    return next((metrics[metric] for metrics in known if metric in metrics), Metric()).shown(value, sign)


def remarks(record: dict[str, Any]) -> list[str]:
    """What a reader of the record's scores has to know: why they mean little, or why one of them is missing."""
    alarm, reason = record.get("scores", {}).get("alarm"), record.get("meteor_unavailable")
    return [f"alarm: {alarm}"] * bool(alarm) + [f"METEOR was not measured: {reason}"] * bool(reason)


def shown_scores(record: dict[str, Any], settings: Settings) -> str:
    """The record's scores in one line, as tables show them: `accuracy 81.37  ...  accuracy (held-out) 79.41  ...`."""
    scores = [q for q in quantities(settings) if q.rule != "cost"]
    shown = [(q, q.shown_as.shown(q.of(record)), "" if q.rule == scores[0].rule else f" ({q.rule})") for q in scores]
    return "  ".join(f"{q.metric}{rule} {text}" for q, text, rule in shown if text)
