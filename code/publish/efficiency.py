"""The paper's claims of efficiency (sections 1 and 4.2, Table 1) beside what `benchmark.py` measured here.

The paper's are of GPT-3 and of GPT-2 medium on a GPU. A verdict is about the ratio on the models and the machine named:
a claim holds where all of its interval does, fails where none does, and is undecided between. No latency is added where
the interval has 1 in it, or ends below, and goes no further than 5% above.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Any

import pandas as pd

import files
from analysis.comparisons import FAILS, HOLDS, MISSING, OPEN
from costs.timing import AS_IT_COMES
from files import read_json, read_table
from publish.tables import markdown

TABLE1_PLAIN = "Fine-Tune/LoRA"  # the paper's row of merged LoRA and of full fine-tuning; it has none of unmerged LoRA
TIMED = {  # benchmark -> its panel in the figure of times; its quantities are "row: one thing / another"
    "training": "a training step",
    "serving": "one batch over several adapters, GPT-2 small",
    "latency": "a forward pass, GPT-2 medium",
}
Measured = dict[str, Any]  # quantity -> a number, or [median, low, high]


def measured(name: str) -> Measured:
    """What the benchmark of that name measured, on a GPU if it was run on one; nothing if it was not run."""
    paths = [files.RESULTS / "benchmark" / f"{name}{where}.json" for where in ("-gpu", "")]
    try:
        return next((read_json(path)["measured"] for path in paths if path.exists()), {})
    except (OSError, ValueError, KeyError):
        return {}  # damaged: the table of ratios says so


Judge = Callable[[list[float]], str]  # of [median, low, high]


def at_least(bound: float) -> Judge:
    return lambda value: HOLDS if value[1] >= bound else FAILS if value[2] < bound else OPEN


def at_most(bound: float) -> Judge:
    return lambda value: HOLDS if value[2] <= bound else FAILS if value[1] > bound else OPEN


def as_fast(value: list[float]) -> str:
    return FAILS if value[1] > 1 else HOLDS if value[2] <= 1.05 else OPEN


def ratios(name: str, pattern: str) -> dict[str, list[float]]:
    """{quantity: [median, low, high]} of what the benchmark measured under names that match."""
    return {
        quantity: value if isinstance(value, list) else [value] * 3
        for quantity, value in measured(name).items()
        if re.search(pattern, quantity)
    }


def shown(value: list[float]) -> str:
    """`1.23 [1.20, 1.26]`; without an interval, if it has none."""
    median, low, high = value
    return f"{median:.2f}" + (f" [{low:.2f}, {high:.2f}]" if low < high else "")


CLAIMS = (  # claim, what the paper says, benchmark, pattern of its quantities, what decides
    ("No latency is added once the pairs are merged.", "the same time (Table 1)", "latency", "LoRA merged", as_fast),
    ("Training is faster than full fine-tuning.", "25% more throughput (GPT-3, section 4.2)", "training",
     "full step", at_least(1.25)),
    ("Training takes less memory than full fine-tuning.", "a third (GPT-3 with Adam, section 4.2)", "memory",
     "with the weights", at_least(3)),
    ("Less than a hundredth of the parameters is trained.", "a ten-thousandth (GPT-3, abstract)", "adapters",
     "trained parameters", at_least(100)),
    ("A checkpoint is small.", "a ten-thousandth (GPT-3, r=4, section 4.2)", "adapters", "of an adapter", at_most(0.7)),
    ("Many tasks take little more room than one.", "100 tasks in 354 GB, not 35 TB (GPT-3, section 4.2)", "adapters",
     "storage", at_least(9)),
    ("A task's pairs are merged on the fly.", "on the fly (section 4.2)", "adapters", "to merge", at_most(0.5)),
    ("Tasks are switched by swapping a few matrices.", "on the fly (section 4.2)", "adapters", "to switch", at_most(5)),
)  # fmt: skip


def efficiency_block() -> str:
    """A row for each claim of efficiency and each model that it was measured on."""
    rows = []
    for claim, paper, name, pattern, judge in CLAIMS:
        for quantity, value in ratios(name, pattern).items():
            rows.append([claim, paper, quantity, shown(value), judge(value)])
        if not ratios(name, pattern):
            rows.append([claim, paper, f"`python code/benchmark.py {name}`", "–", MISSING])
    return markdown(pd.DataFrame(rows, columns=["claim", "in the paper", "measured here", "ratio or size", "verdict"]))


def table1_block() -> str:
    """Table 1: slow-downs of a forward pass of GPT-2 medium over the plain model's, ours beside the paper's."""
    paper = {}
    for row in read_table("paper.csv"):
        if row["table"] == "table1":
            paper.setdefault(row["metric"].rpartition("batch ")[2], {})[row["method"]] = float(row["value"])
    sizes = list(paper)
    slow_downs: dict[str, list[list[float]]] = {}
    names: dict[str, list[str]] = {}
    for quantity, value in sorted(ratios("latency", " / plain").items(), key=_length, reverse=True):
        size, _, method = quantity.removesuffix(" / plain").partition(": ")
        slow_downs.setdefault(method, []).append(value)
        names.setdefault(method, []).append(size)
    if not slow_downs:
        return "Not measured yet: `python code/benchmark.py latency`."
    rows = []
    for method, values in slow_downs.items():
        for place, value in enumerate(values):
            times = paper[sizes[place]]
            theirs = times.get(TABLE1_PLAIN if method == "LoRA merged" else method)
            in_paper = f"{100 * (theirs / times[TABLE1_PLAIN] - 1):+.1f}%" if theirs else "–"
            ours = "{:+.1f}% [{:+.1f}, {:+.1f}]".format(*(100 * (part - 1) for part in value))
            rows.append([method, names[method][place], ours, f"batch {sizes[place]}", in_paper])
    columns = ["method", "input here", "slow-down here", "input in the paper", "slow-down there"]
    return markdown(pd.DataFrame(rows, columns=columns))


def _length(item: tuple[str, list[float]]) -> int:
    return int(item[0].partition(": ")[0].rpartition("length ")[2])


def times(table: str, scale: str) -> Iterator[dict[str, Any]]:
    """The ratios of time of TIMED with their intervals, for a figure: what is timed, and over what.

    Those of models that differ in more than the pairs are left to the table.
    """
    for name, panel in TIMED.items():
        for quantity, value in measured(name).items():
            row, _, label = quantity.removesuffix(" (time)").partition(": ")
            if "/" in label and AS_IT_COMES not in label:
                median, low, high = value
                yield {"panel": panel, "row": row, "label": label, "median": median, "low": low, "high": high}
