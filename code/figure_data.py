"""The numbers that each figure shows, as the CSV beside it: figures are drawn from these texts and nothing else.

    figure_data("parameters", "table3", "cpu")    # "panel,label,method,trainable,seed,score\\n..."

A new figure is a function here, an entry of KINDS, and a function of the same name in `figures.py`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain, product
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd

import records
import slot_matching
from experiments import EXPERIMENTS, find, resolve, select
from quantities import printed
from settings import Experiment, Settings
from summary import cells, seeds_of
from tasks import TASKS, GlueTask

Rows = Iterator[dict[str, Any]]
WORDS = {  # of a row's name, as the paper writes them
    "full": "full fine-tuning", "lora": "LoRA", "bitfit": "BitFit", "adapter": "Adapter", "h": "H", "l": "L", "p": "P",
    "d": "D", "mnli": "MNLI", "prelayer": "PreLayer", "preembed": "PreEmbed", "top2": "FT Top2",
}  # fmt: skip
ERRORS = ("missing", "wrong", "added", "repeated")


def label(experiment: Experiment, scale: str = "paper") -> str:
    """A row's name in a figure: `LoRA r=4`, `LoRA† r=8`, `full fine-tuning`, `Adapter L 11M`, `LoRA 0.004`."""
    if experiment.paper.evaluate == "selection":
        *_, row, rate = experiment.name.split("/")
        return f"{_words(row, scale)} {rate}"
    return _words(experiment.row, scale)


def _words(row: str, scale: str) -> str:
    if scale != "paper":  # the size in a name is that on the paper's model, and of Adapter L there are two at any scale
        row = re.sub(r"-[\d.]+M$", "-wide" if row.startswith("adapter-l-") else "", row)
    words = re.sub(r"\br(\d+)\b", r"r=\1", " ".join(WORDS.get(word, word) for word in row.split("-")))
    return re.sub(r"^LoRA (.*) restricted$", r"LoRA† \1", words)


def _panel(settings: Settings, found: list[dict[str, Any]], metric: str = "") -> str:
    """What may share axes: one base model, one task, one metric."""
    subset = any(any(record.get("subset", {}).values()) for record in found)
    task = TASKS[settings.task].title + (" (subset)" if subset else "")
    return f"{settings.model}, {task}" + (f": {metric}" if metric else "")


def _runs(table: str, scale: str) -> Iterator[tuple[Experiment, Settings, list[dict[str, Any]]]]:
    for experiment in select(table, scale):
        if found := seeds_of(experiment, scale):
            yield experiment, resolve(experiment, scale), found


def parameters(table: str, scale: str) -> Rows:
    """The main score of every seed, and how many parameters were trained for it."""
    for experiment, settings, found in _runs(table, scale):
        if settings.evaluate == "test":
            main = cells([experiment], scale).iloc[0]
            for seed, score in main["each_seed"].items():
                yield {
                    "panel": _panel(settings, found, main["metric"]), "label": label(experiment, scale),
                    "method": settings.method, "trainable": main["trainable"], "seed": seed,
                    "score": printed(main["metric"], score),
                }  # fmt: skip


CURVES = {"loss": "training", "eval_loss": "validation", "validation_loss": "validation"}  # as logged -> as shown


def _losses(record: dict[str, Any]) -> Rows:
    """Training and validation loss as logged: while training means over so many steps, of whole such windows."""
    history = record.get("history", [])
    every = next((entry["step"] for entry in history if "loss" in entry), 1)
    for entry in history:
        for key in (key for key in CURVES if key in entry):
            if key != "loss" or entry["step"] % every == 0:
                yield {"curve": CURVES[key], "step": entry["step"], "value": f"{entry[key]:.4f}"}


def training(table: str, scale: str) -> Rows:
    """Training and validation loss of every seed."""
    for experiment, settings, found in _runs(table, scale):
        for record in found:
            of_run = {"panel": _panel(settings, found), "label": label(experiment, scale), "method": settings.method}
            yield from (of_run | {"seed": record["seed"]} | point for point in _losses(record))


def epochs(table: str, scale: str) -> Rows:
    """GLUE's main metric after every epoch, on the reported split and on held-out training rows."""
    for experiment, settings, found in _runs(table, scale):
        task = TASKS[settings.task]
        if not isinstance(task, GlueTask):
            continue
        for record in found:
            for epoch in record["epochs"]:
                for split in (next(iter(task.validation)), "held_out"):
                    if split in epoch:
                        yield {
                            "panel": _panel(settings, found, task.main_metric), "label": label(experiment, scale),
                            "method": settings.method, "seed": record["seed"], "split": split.partition("_m")[0],
                            "epoch": epoch["epoch"], "score": printed("", 100 * epoch[split][task.main_metric]),
                        }  # fmt: skip


def grid(table: str, scale: str) -> Rows:
    """The main score by adapted matrices and rank."""
    for experiment, settings, found in _runs(table, scale):
        main = cells([experiment], scale).iloc[0]
        yield {
            "panel": _panel(settings, found, main["metric"]), "matrices": experiment.row.rpartition("-r")[0],
            "rank": settings.rank, "n": len(found), "score": printed(main["metric"], main["value"]),
        }  # fmt: skip


def choice(table: str, scale: str) -> Rows:
    """What each learning rate gave on rows where it may be chosen, and which one the tables then use."""
    tests = [e for e in EXPERIMENTS.values() if e.table in ("table2", "table3", "variants") and scale in e.scales]
    used = {_recipe(resolve(e, scale)) for e in tests}
    for experiment, settings, found in _runs(table, scale):
        main = cells([experiment], scale).iloc[0]
        yield {
            "panel": _panel(settings, found, main["metric"]), "label": _words(experiment.name.split("/")[2], scale),
            "learning_rate": f"{settings.learning_rate:g}", "n": len(found),
            "score": printed(main["metric"], main["value"]), "used": "yes" if _recipe(settings) in used else "no",
        }  # fmt: skip


def _recipe(settings: Settings) -> tuple:
    """What a learning rate is chosen for, and the rate; LoRA's is chosen for one rank and used for all."""
    names = ("task", "model", "method", "learning_rate", "bottleneck", "targets", "rank_stabilised",
             "b_learning_rate_ratio")  # fmt: skip
    return tuple(getattr(settings, name) for name in names)


def stages(table: str, scale: str) -> Rows:
    """How a rank that changes while training and the losses go, and those of the plain LoRA it is compared with.

    The rank is a mean over projections: an adaptive budget moves rank between them and keeps it.
    """
    changing = [run for run in _runs(table, scale) if run[1].method in ("sequential-lora", "adaptive-lora")]
    plain = dict.fromkeys(experiment.against for experiment, *_ in changing)
    for experiment, settings, found in [
        *((find(name), resolve(find(name), scale), seeds_of(find(name), scale)) for name in plain), *changing,
    ]:  # fmt: skip
        for record in found:
            what = {"panel": _panel(settings, found), "label": label(experiment, scale), "seed": record["seed"]}
            history = record["history"]
            changes = [(entry["step"], fmean(entry["ranks"].values())) for entry in history if "ranks" in entry]
            changes = changes or [(0, float(settings.rank))]
            for step, rank in [*changes, (max(entry["step"] for entry in history), changes[-1][1])]:
                yield what | {"curve": "rank", "step": step, "value": f"{rank:g}"}
            yield from (what | point for point in _losses(record))


def ranks(table: str, scale: str) -> Rows:
    """The rank of every projection after every reallocation of an adaptive budget; where seeds differ, their mean."""
    for experiment, settings, found in _runs(table, scale):
        if settings.method != "adaptive-lora":
            continue
        counts: dict[tuple[int, str], list[int]] = {}
        for record in found:
            for entry in record["history"]:
                for place, rank in entry.get("ranks", {}).items():
                    counts.setdefault((entry["step"], place), []).append(rank)
        for (step, place), of_seeds in counts.items():
            layer, _, projection = place.partition(".")
            yield {
                "panel": _panel(settings, found), "label": label(experiment, scale), "n": len(found), "layer": layer,
                "projection": projection, "step": step, "rank": f"{fmean(of_seeds):g}",
            }  # fmt: skip


def costs(table: str, scale: str) -> Rows:
    """Minutes and memory of a run: medians over seeds."""
    for experiment, settings, found in _runs(table, scale):
        of_run = cells([experiment], scale).set_index("metric")["value"]
        shown = ("training_minutes", "decoding_minutes", "peak_memory_gib")
        yield {
            "panel": _panel(settings, found), "label": label(experiment, scale), "method": settings.method,
            "n": len(found), "device": "; ".join(sorted({record["device"] for record in found})),
        } | {metric: printed(metric, of_run.get(metric)) for metric in shown}  # fmt: skip


def slots(table: str, scale: str) -> Rows:
    """Which slots the texts get wrong, and how: errors in the texts of all seeds."""
    for experiment, settings, found in _runs(table, scale):
        predictions = [line for record in found for line in _predictions(record)]
        if not predictions:
            continue
        mrs, texts = [line["mr"] for line in predictions], [line["prediction"] for line in predictions]
        errors = Counter(chain.from_iterable(slot_matching.errors_by_slot(mrs, texts)))
        for slot, kind in product(slot_matching.SLOTS, ERRORS):
            yield {
                "panel": _panel(settings, found), "label": label(experiment, scale), "n": len(found), "slot": slot,
                "kind": kind, "errors": errors[slot, kind], "texts": len(texts),
            }  # fmt: skip


def _predictions(record: dict[str, Any]) -> list[dict[str, Any]]:
    path = records.predictions_path(record["name"], record["scale"], record["seed"])
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [line for line in map(json.loads, lines) if "mr" in line]


@dataclass(frozen=True)
class Kind:
    """A kind of figure: what gives its rows for a table at a scale."""

    rows: Callable[[str, str], Rows]
    tables: tuple[str, ...]  # of which `make summary` draws it


KINDS = {
    "parameters": Kind(parameters, ("table2", "table3")),
    "training": Kind(training, ("table2", "table3")),
    "epochs": Kind(epochs, ("curves",)),
    "grid": Kind(grid, ("table6",)),
    "choice": Kind(choice, ("learning-rate",)),
    "stages": Kind(stages, ("rank-over-time",)),
    "ranks": Kind(ranks, ("rank-over-time",)),
    "costs": Kind(costs, ("table3",)),
    "slots": Kind(slots, ("table3",)),
}


def figure_data(kind: str, table: str, scale: str) -> str:
    """The figure's numbers as CSV, empty where nothing is recorded that it could show; ValueError for no such kind."""
    if kind not in KINDS:
        raise ValueError(f"no figure is called {kind!r}; the figures are {', '.join(KINDS)}")
    rows = list(KINDS[kind].rows(table, scale))
    return pd.DataFrame(rows).to_csv(index=False, lineterminator="\n") if rows else ""


def digest(data: str) -> bytes:
    """What a picture carries of the CSV it was drawn from and of the code that drew it, found in its bytes."""
    drawn = b"".join((Path(__file__).parent / name).read_bytes() for name in ("figures.py", "figure_style.py"))
    return f"data-sha256:{hashlib.sha256(data.encode() + drawn).hexdigest()}".encode()
