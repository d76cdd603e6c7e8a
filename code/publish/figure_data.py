"""The numbers that each figure shows, as the CSV beside it: figures are drawn from these texts and nothing else.

    figure_data("parameters", "table3", "cpu")    # "panel,label,method,trainable,seed,score\\n..."

A new figure is a function here, an entry of KINDS, and a function of the same name in `figures.py`.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

from analysis.claims import LEADING, WEAK
from analysis.quantities import printed, quantities
from analysis.summary import cells, measured_on
from experiments.catalogue import EXPERIMENTS, find, select
from experiments.settings import Experiment, Settings
from publish.efficiency import times
from publish.labels import label, words
from publish.subspace_sheets import between_ranks, between_seeds
from runs import records
from tasks.catalogue import TASKS
from tasks.e2e import slot_errors

Rows = Iterator[dict[str, Any]]
SHOWN_COSTS = ("training_minutes", "decoding_minutes", "peak_memory_gib")
ERRORS = ("missing", "wrong", "added", "repeated")


def _panel(settings: Settings, runs: list[dict[str, Any]], metric: str = "") -> str:
    """The name of the axes that rows share: one base model, one task, one metric."""
    subset = any(any(record.get("subset", {}).values()) for record in runs)
    task = TASKS[settings.task].title + (" (subset)" if subset else "")
    return f"{settings.model}, {task}" + (f": {metric}" if metric else "")


def _runs(table: str, scale: str) -> Iterator[tuple[Experiment, Settings, list[dict[str, Any]]]]:
    """The experiments with records, the base LEADING first."""
    for experiment in sorted(select(table, scale), key=lambda experiment: experiment.settings.model != LEADING):
        if runs := records.records_of(experiment):
            yield experiment, experiment.settings, runs


def parameters(table: str, scale: str) -> Rows:
    """The main score of every seed, and how many parameters were trained for it."""
    for experiment, settings, runs in _runs(table, scale):
        if settings.evaluate == "test":
            main = cells([experiment]).iloc[0]
            for seed, score in main["each_seed"].items():
                yield {
                    "panel": _panel(settings, runs, main["metric"]), "label": label(experiment),
                    "method": settings.method, "trainable": main["trainable"], "seed": seed,
                    "score": printed(main["metric"], score),
                }  # fmt: skip


def differences(table: str, scale: str) -> Rows:
    """Each row's difference to full fine-tuning of the same base, and its interval where there are seeds for one.

    The base WEAK is left out beside others: it asks another question, and its differences are of another size.
    """
    runs = list(_runs(table, scale))
    bases = {settings.model for _, settings, _ in runs}
    for experiment, settings, _ in (run for run in runs if run[1].model != WEAK or bases == {WEAK}):
        main = cells([experiment]).iloc[0]
        if settings.evaluate == "test" and not pd.isna(main["difference"]):
            parts = ("difference", "difference_low", "difference_high")
            task = TASKS[settings.task].title if TASKS[settings.task].rules else ""  # GLUE's
            yield {
                "panel": settings.model, "label": " ".join((label(experiment), task)).strip(), "n": main["n"],
                "metric": main["metric"], **{part: printed(main["metric"], main[part]) for part in parts},
            }  # fmt: skip


CURVES = {"loss": "training", "eval_loss": "validation", "validation_loss": "validation"}  # as logged -> as shown


def _losses(record: dict[str, Any]) -> Rows:
    """Training and validation loss as logged. A training loss is a mean over a whole window of steps."""
    history = record.get("history", [])
    window = next((entry["step"] for entry in history if "loss" in entry), 1)
    for entry in history:
        for key in (key for key in CURVES if key in entry):
            if key != "loss" or entry["step"] % window == 0:
                yield {"curve": CURVES[key], "step": entry["step"], "value": printed("dev_loss", entry[key])}


def training(table: str, scale: str) -> Rows:
    """Training and validation loss of every seed."""
    for experiment, settings, runs in _runs(table, scale):
        for record in runs:
            identity = {"panel": _panel(settings, runs), "label": label(experiment), "method": settings.method}
            yield from (identity | {"seed": record["seed"]} | point for point in _losses(record))


def epochs(table: str, scale: str) -> Rows:
    """GLUE's main metric after every epoch, on the reported split and on held-out training rows."""
    for experiment, settings, runs in _runs(table, scale):
        main = TASKS[settings.task].main_metric
        for record in runs:
            for epoch in record.get("epochs", ()):
                reported = next((name for name in epoch if name not in ("epoch", "training_loss", "held_out")), None)
                for split in filter(epoch.get, (reported, "held_out")):
                    yield {
                        "panel": _panel(settings, runs, main), "label": label(experiment), "method": settings.method,
                        "seed": record["seed"], "split": split.partition("_m")[0], "epoch": epoch["epoch"],
                        "score": printed("", 100 * epoch[split][main]),
                    }  # fmt: skip


def grid(table: str, scale: str) -> Rows:
    """The main score by adapted matrices and rank."""
    for experiment, settings, runs in _runs(table, scale):
        main = cells([experiment]).iloc[0]
        yield {
            "panel": _panel(settings, runs, main["metric"]), "matrices": experiment.row.rpartition("-r")[0],
            "rank": settings.rank, "n": len(runs), "score": printed(main["metric"], main["value"]),
        }  # fmt: skip


def choice(table: str, scale: str) -> Rows:
    """The score of each learning rate on the rows for choosing it, and whether the tables use that rate."""
    tests = [e for e in EXPERIMENTS.values() if e.table in ("table2", "table3", "variants") and e.scale == scale]
    used = {_recipe(e.settings) for e in tests}
    for experiment, settings, runs in _runs(table, scale):
        main = cells([experiment]).iloc[0]
        yield {
            "panel": _panel(settings, runs, main["metric"]), "label": words(experiment.name.split("/")[-2]),
            "learning_rate": f"{settings.learning_rate:g}", "n": len(runs),
            "score": printed(main["metric"], main["value"]), "used": "yes" if _recipe(settings) in used else "no",
        }  # fmt: skip


def rates_and_ranks(table: str, scale: str) -> Rows:
    """The dev loss by learning rate at every rank of LoRA, and of full fine-tuning beside it: a panel for each set of
    matrices of which several ranks were searched."""
    searched = [run for run in _runs(table, scale) if run[1].evaluate == "selection"]
    ranks: dict[tuple[str, str, tuple[str, ...]], set[int]] = {}
    for _, settings, _ in searched:
        if settings.method == "lora":
            ranks.setdefault((settings.task, settings.model, settings.targets), set()).add(settings.rank)
    for (task, model, targets), _ in filter(lambda searched_ranks: len(searched_ranks[1]) > 1, ranks.items()):
        for experiment, settings, runs in searched:
            same = (settings.task, settings.model) == (task, model)
            if same and (settings.method == "full" or (settings.method, settings.targets) == ("lora", targets)):
                main = cells([experiment]).iloc[0]
                yield {
                    "panel": f"{_panel(settings, runs)}, {len(targets)} matrices a layer: {main['metric']}",
                    "label": "full fine-tuning" if settings.method == "full" else f"LoRA r={settings.rank}",
                    "learning_rate": f"{settings.learning_rate:g}", "n": len(runs),
                    "score": printed(main["metric"], main["value"]),
                }  # fmt: skip


def _recipe(settings: Settings) -> tuple:
    """The settings that share a learning rate, and the rate. LoRA's is chosen at one rank and used at all."""
    names = ("task", "model", "method", "learning_rate", "bottleneck", "targets", "rank_stabilised",
             "b_learning_rate_ratio")  # fmt: skip
    return tuple(getattr(settings, name) for name in names)


def stages(table: str, scale: str) -> Rows:
    """Rank and losses by step, for the runs whose rank changes and for the plain LoRA they are compared with.

    The rank is the mean over projections. An adaptive budget moves rank between them and keeps the mean.
    """
    changing = [run for run in _runs(table, scale) if run[1].rank_stages or run[1].rank_budget]
    plain = dict.fromkeys(experiment.against for experiment, *_ in changing)
    for experiment, settings, runs in [
        *((find(name), find(name).settings, records.records_of(find(name))) for name in plain), *changing,
    ]:  # fmt: skip
        for record in runs:
            identity = {"panel": _panel(settings, runs), "label": label(experiment), "seed": record["seed"]}
            history = record["history"]
            changes = [(entry["step"], fmean(entry["ranks"].values())) for entry in history if "ranks" in entry]
            changes = changes or [(0, float(settings.rank))]
            for step, rank in [*changes, (max(entry["step"] for entry in history), changes[-1][1])]:
                yield identity | {"curve": "rank", "step": step, "value": f"{rank:g}"}
            yield from (identity | point for point in _losses(record))


def ranks(table: str, scale: str) -> Rows:
    """The rank of every projection after every reallocation of an adaptive budget; where seeds differ, their mean."""
    for experiment, settings, runs in _runs(table, scale):
        if settings.rank_budget is None:
            continue
        ranks_by_place: dict[tuple[int, str], list[int]] = {}
        for record in runs:
            for entry in record["history"]:
                for place, rank in entry.get("ranks", {}).items():
                    ranks_by_place.setdefault((entry["step"], place), []).append(rank)
        for (step, place), seed_ranks in ranks_by_place.items():
            layer, _, projection = place.partition(".")
            yield {
                "panel": _panel(settings, runs), "label": label(experiment), "n": len(runs), "layer": layer,
                "projection": projection, "step": step, "rank": f"{fmean(seed_ranks):g}",
            }  # fmt: skip


def costs(table: str, scale: str) -> Rows:
    """Minutes and memory of a run: medians over the seeds of one group. A group is of one base, task, device, number of
    threads and day; what ran on another day had another machine or other work beside it."""
    lines = []
    for experiment, settings, runs in _runs(table, scale):
        shown = [quantity for quantity in quantities(settings) if quantity.metric in SHOWN_COSTS]
        for record in runs:
            where = f"{record['device']}, threads: {record['threads']}, {measured_on(record)}"
            row = {"panel": f"{_panel(settings, runs)}; {where}", "label": label(experiment)}
            lines.append(row | {"n": 1} | {quantity.metric: quantity.of(record) for quantity in shown})
    if lines:
        by_row = pd.DataFrame(lines).groupby(["panel", "label"], sort=False)
        medians = by_row.median().assign(n=by_row["n"].sum()).reset_index()
        for row in medians.to_dict("records"):
            yield row | {metric: printed(metric, row[metric]) for metric in SHOWN_COSTS}


def slots(table: str, scale: str) -> Rows:
    """Slot errors by slot and kind, counted over the texts of all seeds."""
    for experiment, settings, runs in _runs(table, scale):
        texts_by_run = [[line for line in records.read_predictions(record) if "mr" in line] for record in runs]
        predictions = list(chain.from_iterable(texts_by_run))
        if not predictions:
            continue
        mrs, texts = [line["mr"] for line in predictions], [line["prediction"] for line in predictions]
        errors = Counter(chain.from_iterable(slot_errors.errors_by_slot(mrs, texts)))
        for slot, kind in product(slot_errors.SLOTS, ERRORS):
            yield {
                "panel": _panel(settings, runs), "label": label(experiment), "n": sum(map(bool, texts_by_run)),
                "slot": slot, "kind": kind, "errors": errors[slot, kind], "texts": len(texts),
            }  # fmt: skip


@dataclass(frozen=True)
class Kind:
    """A kind of figure: the function that gives its rows for a table at a scale."""

    rows: Callable[[str, str], Rows]
    tables: tuple[str, ...]  # the tables for which `make summary` draws it


KINDS = {
    "parameters": Kind(parameters, ("table2", "table3")),
    "differences": Kind(differences, ("table2", "table3")),
    "training": Kind(training, ("table2", "table3")),
    "epochs": Kind(epochs, ("curves",)),
    "grid": Kind(grid, ("table6",)),
    "choice": Kind(choice, ("learning-rate",)),
    "rates-and-ranks": Kind(rates_and_ranks, ("learning-rate",)),
    "stages": Kind(stages, ("rank-over-time",)),
    "ranks": Kind(ranks, ("rank-over-time",)),
    "costs": Kind(costs, ("table3",)),
    "slots": Kind(slots, ("table3",)),
    "between-ranks": Kind(between_ranks, ("subspaces",)),
    "between-seeds": Kind(between_seeds, ("subspaces",)),
    "times": Kind(times, ("benchmark",)),
}


def figure_data(kind: str, table: str, scale: str) -> str:
    """The figure's numbers as CSV, empty where no record has any; ValueError for an unknown kind."""
    if kind not in KINDS:
        raise ValueError(f"no figure is called {kind!r}; the figures are {', '.join(KINDS)}")
    rows = list(KINDS[kind].rows(table, scale))
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n") if rows else ""


def digest(data: str) -> bytes:
    """The digest that a picture carries in its bytes: of the CSV it was drawing_code from and the code that drew it."""
    drawing_code = b"".join(
        (Path(__file__).parent / name).read_bytes() for name in ("figures.py", "figure_bars.py", "figure_style.py")
    )
    return f"data-sha256:{hashlib.sha256(data.encode() + drawing_code).hexdigest()}".encode()


def sealed(picture: bytes) -> bytes:
    """The PNG or PDF with a digest of its bytes behind its end, which readers pass over."""
    return picture + f"\n%sha256:{hashlib.sha256(picture).hexdigest()}\n".encode()


def is_whole(picture: bytes) -> bool:
    """Whether these are the bytes that `sealed` gave, all of them and none changed."""
    return sealed(picture.rpartition(b"\n%sha256:")[0]) == picture
