"""Figures in `results/figures`, as PNG and PDF beside the CSV they are drawn from.

    draw("parameters", "table3", "cpu")    # [.../table3-parameters-cpu.png, ....pdf]

Every function of DRAW draws the numbers of `figure_data.py`, without a title. `draw_text` adds it: what is shown, at
which scale, over how many seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import StringIO
from itertools import product
from pathlib import Path
from textwrap import fill, wrap
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

import files
from files import write_atomically
from publish.figure_bars import costs, differences, heat_map, similarities, slots, times
from publish.figure_data import KINDS, figure_data
from publish.figure_style import legend_below, panels, save, styles, wide_and_small
from publish.labels import TITLES

INCHES_A_LETTER, INCHES_A_LINE = 0.073, 0.16  # of a title, so that none is cut off
CLEAR = {"facecolor": "white", "edgecolor": "none", "pad": 0.5}  # behind a text
FAR = 6  # times the distance from the best loss to the middle one
QUANTITIES = {  # curve -> name of its axis
    "rank": "mean rank", "training": "loss (nats; label-smoothed on E2E)", "validation": "validation loss (nats)",
    "end": "validation loss (nats)",
}  # fmt: skip
HEADINGS = {
    "parameters": "Score against trainable parameters, a dot a seed",
    "differences": "The difference to full fine-tuning of the same model, with its 90% interval",
    "training": "Loss while training, a line or a dot a seed",
    "epochs": "Score after every epoch, a line a seed",
    "grid": "Score by adapted matrices and rank",
    "choice": "Score by learning rate; large: the rate that the tables use",
    "rates-and-ranks": "Dev loss by learning rate, at every rank",
    "stages": "Rank and loss over time, a line or a dot a seed",
    "ranks": "Where an adaptive budget of rank goes, reallocation by reallocation",
    "costs": "Time and memory of a run, medians over seeds; what ran on one day compares",
    "slots": "Slot errors of the texts, by slot and by kind",
    "between-ranks": "Similarity of the first directions of A at two ranks, from 0 to 1",
    "between-seeds": "Similarity of the first directions of A at two seeds, from 0 to 1",
    "times": "What LoRA costs: time of the first over time of the second, with its 95% interval",
}


def _by_panel(data: pd.DataFrame, axes: list[Axes]) -> Iterator[tuple[pd.DataFrame, Axes]]:
    for (title, rows), ax in zip(data.groupby("panel", sort=False), axes, strict=True):
        ax.set_title(fill(title.partition(":")[0], 21))  # as much as a third of the width has room for
        yield rows, ax


def _metric(rows: pd.DataFrame) -> str:
    metric = rows["panel"].iloc[0].partition(": ")[2]
    return "dev loss (nats a token)" if metric == "dev_loss" else f"{metric} (x 100)"


def parameters(data: pd.DataFrame) -> Figure:
    number = data["panel"].nunique()
    figure, axes = panels(number, columns=3, height=2.1) if number > 1 else panels(1, columns=1, height=3, width=3.7)
    looks, handles = styles(data["label"]), {}
    for rows, ax in _by_panel(data, axes):
        for name, points in rows.groupby("label", sort=False):
            look = looks[name] | {"linestyle": "none"}
            (handles[name],) = ax.plot(points["trainable"], points["score"], alpha=0.85, **look)
        ax.set_xscale("log")
        ax.margins(x=0.15, y=0.15)
        ax.set_xlabel("trainable parameters")
        ax.set_ylabel(_metric(rows))
    legend_below(figure, {name: handles[name] for name in looks})
    return figure


def _curves(data: pd.DataFrame, column: str, x: str, y: str, titles: dict[str, str], height: float) -> Figure:
    """Axes for each panel and kind of `column`, two a row: a line for each seed, or dots if every line is one point."""
    names = list(data["panel"].unique())
    figure, axes = panels(len(titles) * len(names), columns=2, height=height)
    looks = styles(data["label"])
    for ax, (panel, kind) in zip(axes, product(names, titles), strict=True):
        panel_rows = data[data["panel"] == panel]
        rows = panel_rows[panel_rows[column] == kind]
        if rows.empty:
            ax.remove()
            continue
        quantity = _metric(rows) if y == "score" else QUANTITIES[kind]
        ax.set_title(f"{panel.partition(':')[0]}: {titles[kind]}")
        if not rows.duplicated(["label", "seed"]).any():
            _dots(ax, rows, y, looks)
            ax.set_xlabel(quantity.replace(" (", " at the end ("))
            continue
        line_style = {"training": {"marker": ""}, "rank": {"drawstyle": "steps-post"}}.get(kind, {})
        for (name, _), line in rows.groupby(["label", "seed"], sort=False):
            ax.plot(line[x], line[y], alpha=0.8, **looks[name] | line_style)
        ax.set_xlim(-0.02 * panel_rows[x].max(), 1.05 * panel_rows[x].max())
        ax.xaxis.set_major_locator(MaxNLocator(5, integer=True, steps=(1, 2, 5, 10)))
        ax.set_xlabel("optimizer steps" if x == "step" else x)
        ax.set_ylabel(quantity)
    legend_below(figure, {name: Line2D([], [], **look) for name, look in looks.items()})
    return figure


def _dots(ax: Axes, rows: pd.DataFrame, y: str, looks: dict[str, dict[str, Any]]) -> None:
    """The seeds of each row as dots beside its name, the lowest row at the top."""
    names = rows.groupby("label", sort=False)[y].median().sort_values(ascending=False, kind="stable").index
    for place, name in enumerate(names):
        values = rows[rows["label"] == name][y]
        ax.plot(values, [place] * len(values), alpha=0.8, **looks[name] | {"linestyle": "none"})
    ax.set_yticks(range(len(names)), names)
    ax.margins(x=0.1)
    ax.set_ylim(-0.5, len(names) - 0.5)


def training(data: pd.DataFrame) -> Figure:
    titles = {"training": "training", "validation": "validation"}
    return _curves(data, "curve", "step", "value", titles, height=3.0 if data["panel"].nunique() < 3 else 2.1)


def stages(data: pd.DataFrame) -> Figure:
    """The losses at the end, of all rows, and validations on the way, of plateau rows only, have a panel each."""
    runs = ["panel", "label", "seed"]
    validated = data[data["curve"] == "validation"]
    end = validated.drop_duplicates(runs, keep="last").assign(curve="end")
    once = validated[~validated.duplicated(runs, keep=False)]
    titles = {"rank": "rank", "training": "training", "end": "at the end", "validation": "on the way"}
    return _curves(pd.concat([data.drop(once.index), end]), "curve", "step", "value", titles, height=2.3)


def epochs(data: pd.DataFrame) -> Figure:
    titles = {split: "held-out rows" if split == "held_out" else "reported split" for split in data["split"].unique()}
    return _curves(data, "split", "epoch", "score", titles, height=2.6)


def grid(data: pd.DataFrame) -> Figure:
    figure, axes = panels(data["panel"].nunique(), columns=1, height=3.0, width=5.4)
    for rows, ax in _by_panel(data, axes):
        table = rows.pivot(index="matrices", columns="rank", values="score").reindex(rows["matrices"].unique())
        table.index = [
            name.replace("query-key-value-output", "query, key,\nvalue, output").replace("-", ", ")
            for name in table.index
        ]
        heat_map(ax, table, _metric(rows), 2)
        ax.set_xlabel("rank r")
    return figure


def _name_far_losses(ax: Axes, rows: pd.DataFrame) -> None:
    """Losses far above the others, of rates at which training diverged, are named at the edge: drawn to scale, they
    would make one line of all others."""
    losses = rows["score"]
    far = losses > losses.min() + FAR * (losses.median() - losses.min())
    if "dev_loss" in rows["panel"].iloc[0] and far.any():
        low, high = losses.min(), losses[~far].max()
        ax.set_ylim(low - 0.12 * (high - low), high + 0.3 * (high - low))
        for row in rows[far].itertuples():
            place = {"xycoords": ("data", "axes fraction"), "ha": "right", "va": "top", "fontsize": 8, "bbox": CLEAR}
            ax.annotate(f"{row.score:.2f} \u2191", (row.learning_rate, 0.98), **place)


def choice(data: pd.DataFrame) -> Figure:
    figure, axes = wide_and_small(data["panel"].nunique(), wide=2.6, small=1.4)
    looks = styles(data["label"])
    for rows, ax in _by_panel(data, axes):
        for name, line in rows.sort_values("learning_rate").groupby("label"):
            used = line[line["used"] == "yes"]
            large = {"markersize": 8, "linestyle": "none", "zorder": 1.9}  # below the lines: it hides none
            ax.plot(used["learning_rate"], used["score"], **looks[name] | large)
            ax.plot(line["learning_rate"], line["score"], **looks[name] | {"markersize": 3.5})
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.08, y=0.12)
        _name_far_losses(ax, rows)
        ax.set_xlabel("learning rate")
        ax.set_ylabel(_metric(rows).replace(" (", "\n("))  # in one line it is longer than the axis
    legend_below(figure, {name: Line2D([], [], **look) for name, look in looks.items()})
    return figure


def rates_and_ranks(data: pd.DataFrame) -> Figure:
    figure, axes = panels(data["panel"].nunique(), columns=2, height=2.6)
    looks = styles(data["label"])
    for rows, ax in _by_panel(data, axes):
        for name, line in rows.sort_values("learning_rate").groupby("label", sort=False):
            best = line.loc[[line["score"].idxmin()]]
            ax.plot(line["learning_rate"], line["score"], **looks[name] | {"markersize": 4})
            ax.plot(best["learning_rate"], best["score"], **looks[name] | {"markersize": 9, "linestyle": "none"})
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        _name_far_losses(ax, rows)
        ax.set_xlabel("learning rate; large: the best")
        ax.set_ylabel(_metric(rows))
    legend_below(figure, {name: Line2D([], [], **look) for name, look in looks.items()})
    return figure


def ranks(data: pd.DataFrame) -> Figure:
    most = data.groupby("panel")[["layer", "projection"]].apply(lambda rows: len(rows.drop_duplicates())).max()
    figure, axes = panels(data["panel"].nunique(), columns=1, height=1.0 + 0.22 * most, width=5.0)
    for rows, ax in _by_panel(data, axes):
        rows = rows.assign(place=rows["projection"] + " " + rows["layer"].astype(str))
        places = rows.sort_values(["projection", "layer"], kind="stable")["place"].unique()
        whole = (rows["rank"] % 1 == 0).all()  # a mean of seeds need not be
        heat_map(ax, rows.pivot(index="place", columns="step", values="rank").loc[places], "rank", 0 if whole else 1)
        ax.set_xlabel("optimizer steps")
        ax.set_ylabel("projection and layer")
    return figure


DRAW: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "parameters": parameters, "differences": differences, "training": training, "epochs": epochs, "grid": grid,
    "choice": choice, "stages": stages, "rates-and-ranks": rates_and_ranks, "ranks": ranks, "costs": costs,
    "slots": slots, "between-ranks": similarities, "between-seeds": similarities, "times": times,
}  # fmt: skip


def _seeds(data: pd.DataFrame) -> str:
    if "seed" not in data and "n" not in data:
        return "timed in turn, within one run"
    counts = data["n"] if "n" in data else data.groupby(["panel", "label"])["seed"].nunique()
    low, high = counts.min(), counts.max()
    text = f"n = {low}" + (f" to {high}" if low < high else "") + (" seeds" if high > 1 else " seed")
    return text.replace(" ", "\u00a0")  # in one line


def draw_text(text: str, kind: str, table: str, scale: str, folder: Path) -> list[Path]:
    """Draw a CSV text of `figure_data` and write PNG and PDF into the folder; their paths."""
    data = pd.read_csv(StringIO(text))
    figure = DRAW[kind](data)
    title = (HEADINGS[kind], f"{TITLES.get(table, table)}; scale {scale}; {_seeds(data)}")
    lines = [part for line in title for part in wrap(line, int(figure.get_figwidth() / INCHES_A_LETTER))]
    figure.set_figheight(figure.get_figheight() + INCHES_A_LINE * len(lines))
    figure.suptitle("\n".join(lines), x=0.01, ha="left")
    return save(figure, folder / f"{table}-{kind}-{scale}", text)


def draw(kind: str, table: str, scale: str) -> list[Path]:
    """Write CSV, PNG and PDF of the figure; the paths of the last two.

    Raises ValueError if no record of the table at the scale has what the figure shows.
    """
    text = figure_data(kind, table, scale)
    if not text:
        of_adapters = table == "subspaces" and table in KINDS[kind].tables
        remedy = "make.py subspaces BASE" if of_adapters else f"reproduce.py sweep {table} --scale {scale}"
        raise ValueError(
            f"nothing of {table} is recorded at scale {scale} that the figure {kind!r} could show; run "
            f"`python code/{remedy}`"
        )
    folder = files.RESULTS / "figures"
    write_atomically(folder / f"{table}-{kind}-{scale}.csv", text)
    return draw_text(text, kind, table, scale, folder)
