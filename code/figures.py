"""Figures in `results/figures`, as PNG and PDF beside the CSV they are drawn from.

    draw("parameters", "table3", "cpu")    # [.../table3-parameters-cpu.png, ....pdf]

Every function of DRAW takes the numbers of `figure_data.py` and gives a figure without its title, which says what is
shown, at which scale and over how many seeds.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from io import StringIO
from itertools import product
from pathlib import Path

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullFormatter

import paths
from figure_data import ERRORS, figure_data
from figure_style import BRIGHTNESS, GREYS, HATCHES, legend_below, panels, save, styles
from result_tables import TITLES

INCHES_A_LETTER = 0.08  # of a title, so that none is cut off
ASIDE = 1.1  # how far a seed's dot is drawn beside the next one's, on the axis of parameters
HEADINGS = {
    "parameters": "Score against trainable parameters, a dot a seed, side by side",
    "training": "Loss while training, a line a seed",
    "epochs": "Score after every epoch, a line a seed",
    "grid": "Score by adapted matrices and rank",
    "choice": "Score by learning rate, the rate that the tables use ringed",
    "stages": "Rank and loss over time, a line a seed",
    "ranks": "Where an adaptive budget of rank goes, reallocation by reallocation",
    "costs": "Time and memory of a run, medians over seeds",
    "slots": "Slot errors of the texts, by slot and by kind",
}


def _by_panel(data: pd.DataFrame, axes: list[Axes]) -> Iterator[tuple[pd.DataFrame, Axes]]:
    for (title, rows), ax in zip(data.groupby("panel", sort=False), axes, strict=True):
        ax.set_title(title.partition(":")[0])
        yield rows, ax


def _metric(rows: pd.DataFrame) -> str:
    metric = rows["panel"].iloc[0].partition(": ")[2]
    return "dev loss (nats a token)" if metric == "dev_loss" else f"{metric} (x 100)"


def parameters(data: pd.DataFrame) -> Figure:
    figure, axes = panels(
        data["panel"].nunique(), columns=4, size=(2.7, 2.6) if data["panel"].nunique() > 2 else (4.6, 3.4)
    )
    looks, handles = styles(data["label"]), {}
    for rows, ax in _by_panel(data, axes):
        for name, points in rows.groupby("label", sort=False):
            look = looks[name] | {"linestyle": "none"}
            beside = [ASIDE ** (i - (len(points) - 1) / 2) for i in range(len(points))]
            (handles[name],) = ax.plot(points["trainable"] * beside, points["score"], alpha=0.85, **look)
        ax.set_xscale("log")
        ax.margins(x=0.15, y=0.15)
        ax.set_xlabel("trainable parameters")
        ax.set_ylabel(_metric(rows))
    legend_below(figure, {name: handles[name] for name in looks})
    return figure


def _curves(
    data: pd.DataFrame, column: str, kinds: tuple[str, ...], x: str, y: str, size: tuple[float, float]
) -> tuple[Figure, list[tuple[Axes, str, str, pd.DataFrame]]]:
    """A row of axes a panel, one for each kind of `column`, a line a seed: (axes, panel, kind, rows) of each."""
    names = list(data["panel"].unique())
    figure, axes = panels(len(kinds) * len(names), columns=len(kinds), size=size)
    looks = styles(data["label"])
    found = []
    for ax, (panel, kind) in zip(axes, product(names, kinds), strict=True):
        rows = data[(data["panel"] == panel) & (data[column] == kind)]
        dense = {"marker": ""} if kind == "training" else {}
        for (name, _), line in rows.groupby(["label", "seed"], sort=False):
            steps = {"drawstyle": "steps-post"} if kind == "rank" else {}
            ax.plot(line[x], line[y], alpha=0.8, **looks[name] | dense | steps)
        found.append((ax, panel, kind, rows))
    legend_below(figure, {name: Line2D([], [], **look) for name, look in looks.items()})
    return figure, found


def training(data: pd.DataFrame) -> Figure:
    height = 3.0 if data["panel"].nunique() < 3 else 2.1
    figure, found = _curves(data, "curve", ("training", "validation"), "step", "value", (3.9, height))
    for ax, panel, curve, _ in found:
        ax.set_title(f"{panel}: {curve}" + (", as it is minimised" if curve == "training" else ""))
        ax.set_xlabel("optimizer steps")
        ax.set_ylabel("loss (nats)")
        ax.set_xlim(0, 1.05 * data[data["panel"] == panel]["step"].max())
    return figure


def epochs(data: pd.DataFrame) -> Figure:
    figure, found = _curves(data, "split", tuple(data["split"].unique()), "epoch", "score", (3.9, 2.8))
    for ax, panel, split, rows in found:
        where = "held-out training rows" if split == "held_out" else "the split that is reported"
        ax.set_title(f"{panel.partition(':')[0]}: {where}")
        ax.set_xlabel("epoch")
        ax.set_ylabel(_metric(rows))
        ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    return figure


def _heat(ax: Axes, table: pd.DataFrame, what: str, decimals: int) -> None:
    """A heat map with its numbers; brighter is more."""
    image = ax.imshow(table, cmap=BRIGHTNESS, aspect="auto")
    ax.grid(False)
    ax.set_xticks(range(len(table.columns)), table.columns)
    ax.set_yticks(range(len(table.index)), table.index)
    ax.spines[:].set_visible(False)
    middle = (table.min(axis=None) + table.max(axis=None)) / 2
    for y, row in enumerate(table.to_numpy()):
        for x, value in enumerate(row):
            text = "not run" if pd.isna(value) else f"{value:.{decimals}f}"
            ax.text(
                x,
                y,
                text,
                ha="center",
                va="center",
                fontsize=8,
                color="black" if value > middle or pd.isna(value) else "white",
            )
    ax.figure.colorbar(image, ax=ax, label=what, shrink=0.85)


def grid(data: pd.DataFrame) -> Figure:
    figure, axes = panels(data["panel"].nunique(), columns=2, size=(5.4, 3.0))
    for rows, ax in _by_panel(data, axes):
        table = rows.pivot(index="matrices", columns="rank", values="score").reindex(rows["matrices"].unique())
        table.index = [
            name.replace("query-key-value-output", "query, key,\nvalue, output").replace("-", ", ")
            for name in table.index
        ]
        _heat(ax, table, _metric(rows), 2)
        ax.set_xlabel("rank r")
    return figure


def choice(data: pd.DataFrame) -> Figure:
    figure, axes = panels(data["panel"].nunique(), size=(2.0, 1.9))
    data = data.assign(method=data["method"].replace({"full": "full fine-tuning", "lora": "LoRA"}))
    looks, handles = styles(data["method"]), {}
    for rows, ax in _by_panel(data, axes):
        for name, line in rows.sort_values("learning_rate").groupby("method", sort=False):
            (handles[name],) = ax.plot(line["learning_rate"], line["score"], **looks[name])
            used = line[line["used"] == "yes"]
            ax.plot(used["learning_rate"], used["score"], "o", ms=13, mfc="none", mec=looks[name]["color"])
        ax.set_xscale("log")
        ax.xaxis.set_minor_formatter(NullFormatter())
        ax.margins(x=0.12, y=0.2)
        ax.set_xlabel("learning rate")
        ax.set_ylabel(_metric(rows))
    legend_below(figure, handles)
    return figure


def stages(data: pd.DataFrame) -> Figure:
    figure, found = _curves(data, "curve", ("rank", "training", "validation"), "step", "value", (3.4, 3.0))
    for ax, panel, curve, _ in found:
        ax.set_title(f"{panel}: {curve}")
        ax.set_xlabel("optimizer steps")
        ax.set_ylabel("rank of a projection" if curve == "rank" else "loss (nats)")
    return figure


def ranks(data: pd.DataFrame) -> Figure:
    most = data.groupby("panel")[["layer", "projection"]].apply(lambda rows: len(rows.drop_duplicates())).max()
    figure, axes = panels(data["panel"].nunique(), columns=2, size=(5.4, 1.0 + 0.22 * most))
    for rows, ax in _by_panel(data, axes):
        rows = rows.assign(place=rows["projection"] + " " + rows["layer"].astype(str))
        places = rows.sort_values(["projection", "layer"], kind="stable")["place"].unique()
        whole = (rows["rank"] % 1 == 0).all()  # a mean of seeds need not be
        _heat(ax, rows.pivot(index="place", columns="step", values="rank").loc[places], "rank", 0 if whole else 1)
        ax.set_xlabel("optimizer steps")
        ax.set_ylabel("projection and layer")
    return figure


def costs(data: pd.DataFrame) -> Figure:
    several = data["panel"].nunique() > 1
    names = [f"{row.label} ({row.panel})" if several else row.label for row in data.itertuples()]
    figure, (time, memory) = panels(2, columns=2, size=(3.9, 1.2 + 0.3 * len(names)))
    places = range(len(names))
    left = pd.Series(0.0, data.index)
    for (step, colour), hatch in zip((("training", GREYS[1]), ("decoding", GREYS[3])), HATCHES, strict=False):
        minutes = data[f"{step}_minutes"].fillna(0)
        time.barh(places, minutes, left=left, color=colour, hatch=hatch, edgecolor="black", label=step)
        left += minutes
    memory.barh(places, data["peak_memory_gib"], color=GREYS[1], edgecolor="black")
    for ax, totals, unit in ((time, left, "minutes"), (memory, data["peak_memory_gib"], "peak memory (GiB)")):
        ax.bar_label(ax.containers[-1], [f"{total:.1f}" for total in totals], padding=3, fontsize=8)
        ax.set_yticks(places, names if ax is time else [])
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.margins(x=0.16)
        ax.set_xlabel(unit)
    time.set_title(f"on {', '.join(data['device'].unique())}")
    legend_below(figure, {step: bars for step, bars in zip(("training", "decoding"), time.containers, strict=True)})
    return figure


def slots(data: pd.DataFrame) -> Figure:
    several = data["panel"].nunique() > 1
    data = data.assign(
        row=data["label"] + (" (" + data["panel"] + ")" if several else ""), rate=100 * data["errors"] / data["texts"]
    )
    names = list(data["row"].unique())
    figure, (heat, bars) = panels(2, columns=2, size=(4.6, 1.5 + 0.34 * len(names)))
    by_slot = data.groupby(["row", "slot"], sort=False)["rate"].sum().unstack()[list(data["slot"].unique())].loc[names]
    _heat(
        heat,
        by_slot.rename(columns={"customer rating": "rating", "familyFriendly": "family", "priceRange": "price"}),
        "",
        1,
    )
    heat.set_title("errors in 100 texts, by slot")
    bars.set_title("by kind")
    heat.tick_params(axis="x", rotation=45)
    left = pd.Series(0.0, names)
    for kind, colour, hatch in zip(ERRORS, GREYS, HATCHES, strict=True):
        rates = data[data["kind"] == kind].groupby("row", sort=False)["rate"].sum().loc[names]
        bars.barh(range(len(names)), rates, left=left, color=colour, hatch=hatch, edgecolor="black", label=kind)
        left += rates
    bars.set_yticks(range(len(names)), [])
    bars.set_ylim(len(names) - 0.5, -0.5)
    bars.grid(axis="y", visible=False)
    bars.set_xlabel("errors in 100 texts")
    bars.set_xlim(0, 1.05 * left.max() or 1)
    legend_below(figure, dict(zip(ERRORS, bars.containers, strict=True)))
    return figure


DRAW: dict[str, Callable[[pd.DataFrame], Figure]] = {
    "parameters": parameters, "training": training, "epochs": epochs, "grid": grid, "choice": choice, "stages": stages,
    "ranks": ranks, "costs": costs, "slots": slots,
}  # fmt: skip


def _seeds(data: pd.DataFrame) -> str:
    counts = data["n"] if "n" in data else data.groupby(["panel", "label"])["seed"].nunique()
    low, high = counts.min(), counts.max()
    return f"n = {low}" + (f" to {high}" if low < high else "") + (" seeds" if high > 1 else " seed")


def draw_text(text: str, kind: str, table: str, scale: str, folder: Path) -> list[Path]:
    """Draw the figure of a CSV of `figure_data` and write it beside it; the paths of PNG and PDF."""
    data = pd.read_csv(StringIO(text))
    figure = DRAW[kind](data)
    title = f"{HEADINGS[kind]}\n{TITLES.get(table, table)}; scale {scale}; {_seeds(data)}"
    figure.suptitle(title, x=0.01, ha="left")
    figure.set_figwidth(max(figure.get_figwidth(), INCHES_A_LETTER * max(map(len, title.splitlines()))))
    return save(figure, folder / f"{table}-{kind}-{scale}", text)


def draw(kind: str, table: str, scale: str) -> list[Path]:
    """Write CSV, PNG and PDF of the figure; the paths of the last two.

    Raises ValueError where nothing of the table is recorded at the scale that the figure could show.
    """
    text = figure_data(kind, table, scale)
    if not text:
        raise ValueError(
            f"nothing of {table} is recorded at scale {scale} that the figure {kind!r} could show; run "
            f"`python code/reproduce.py sweep {table} --scale {scale}`"
        )
    folder = paths.RESULTS / "figures"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{table}-{kind}-{scale}.csv").write_text(text, encoding="utf-8")
    return draw_text(text, kind, table, scale, folder)
