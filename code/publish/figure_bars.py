"""Figures of bars, intervals and heat maps: what a run costs, how methods differ, which slots texts get wrong."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from publish.figure_data import ERRORS
from publish.figure_style import BRIGHTNESS, GREYS, HATCHES, OURS, legend_below, panels, styles


def heat_map(
    ax: Axes, table: pd.DataFrame, quantity: str, decimals: int, limits: tuple[float, float] | None = None
) -> None:
    """A heat map with its numbers; brighter is more. A colour bar is drawn if `quantity` names it.

    `limits` are the numbers of the darkest and the brightest colour: panels that share them compare.
    """
    low, high = limits or (table.min(axis=None), table.max(axis=None))
    image = ax.imshow(table, cmap=BRIGHTNESS, aspect="auto", vmin=low, vmax=high)
    ax.grid(False)
    ax.set_xticks(range(len(table.columns)), table.columns)
    ax.set_yticks(range(len(table.index)), table.index)
    ax.spines[:].set_visible(False)
    middle = (low + high) / 2
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
    if quantity:
        ax.figure.colorbar(image, ax=ax, label=quantity, shrink=0.85)


def costs(data: pd.DataFrame) -> Figure:
    """Time and memory side by side, below each other for groups of runs that do not compare."""
    by_group = dict(list(data.groupby("panel", sort=False)))
    figure, axes = panels(2 * len(by_group), columns=2, height=1.1 + 0.25 * max(map(len, by_group.values())))
    axes[0].get_gridspec().set_height_ratios([1.1 + 0.25 * len(rows) for rows in by_group.values()])
    for (group, rows), time, memory in zip(by_group.items(), axes[::2], axes[1::2], strict=True):
        places, left = range(len(rows)), pd.Series(0.0, rows.index)
        for (step, colour), hatch in zip((("training", GREYS[1]), ("decoding", GREYS[3])), HATCHES, strict=False):
            minutes = rows[f"{step}_minutes"].fillna(0)
            time.barh(places, minutes, left=left, color=colour, hatch=hatch, edgecolor="black", label=step)
            left += minutes
        memory.barh(places, rows["peak_memory_gib"], color=GREYS[1], edgecolor="black")
        for ax, totals, unit in ((time, left, "minutes"), (memory, rows["peak_memory_gib"], "peak memory (GiB)")):
            ax.bar_label(ax.containers[-1], [f"{total:.1f}" for total in totals], padding=3, fontsize=8)
            ax.set_yticks(places, rows["label"] if ax is time else [])
            ax.set_ylim(len(rows) - 0.5, -0.5)
            ax.grid(axis="y", visible=False)
            ax.margins(x=0.16)
            ax.set_xlabel(unit)
        time.set_title(group)
    steps = ("training", "decoding")
    legend_below(figure, {step: bars for step, bars in zip(steps, axes[0].containers, strict=True)})
    return figure


def differences(data: pd.DataFrame) -> Figure:
    """A row each: the difference to full fine-tuning as a dot and a number, its 90% interval as a line."""
    by_base = dict(list(data.groupby("panel", sort=False)))
    figure, axes = panels(len(by_base), columns=1, height=1.0)
    heights = [0.55 + 0.22 * len(rows) for rows in by_base.values()]
    axes[0].get_gridspec().set_height_ratios(heights)
    figure.set_figheight(sum(heights))
    for (base, rows), ax in zip(by_base.items(), axes, strict=True):
        ax.axvline(0, color=GREYS[0], linewidth=1)
        for place, row in enumerate(rows.to_dict("records")):
            ours = row["label"].startswith("LoRA")
            known = not pd.isna(row["difference_low"])
            look = {"color": OURS if ours else GREYS[1], "fillstyle": "full" if known else "none"}
            ax.plot([row["difference_low"], row["difference_high"]], [place, place], linewidth=2.2, color=look["color"])
            ax.plot(row["difference"], place, "o", **look)
            ax.annotate(f"{row['difference']:+.2f}", (1.01, place), xycoords=("axes fraction", "data"), va="center",
                        fontsize=8)  # fmt: skip
        ax.set_yticks(range(len(rows)), rows["label"])
        ax.set_ylim(len(rows) - 0.5, -0.5)
        ax.grid(axis="y", visible=False)
        ax.set_title(base if len(axes) == 1 else f"{base} (a scale of its own)")
    points = f"{data['metric'].iloc[0]} points" if data["metric"].nunique() == 1 else "points"
    axes[-1].set_xlabel(f"{points} behind or ahead of full fine-tuning (hollow: one seed, no interval)")
    return figure


def times(data: pd.DataFrame) -> Figure:
    """A panel for each benchmark: what was timed in rows, each ratio a dot on the line of its interval."""
    by_panel = dict(list(data.groupby("panel", sort=False)))
    figure, axes = panels(len(by_panel), columns=1, height=1.0)
    heights = [0.6 + max(0.13 * len(rows), 0.16 * rows["label"].nunique()) for rows in by_panel.values()]
    axes[0].get_gridspec().set_height_ratios(heights)
    figure.set_figheight(sum(heights))
    for (panel, rows), ax in zip(by_panel.items(), axes, strict=True):
        names, labels = list(rows["row"].unique()), list(rows["label"].unique())
        looks = styles(labels)
        ax.axvline(1, color=GREYS[0], linewidth=1)
        for name, values in rows.groupby("label", sort=False):
            beside = 0.8 * ((labels.index(name) + 0.5) / len(labels) - 0.5)
            places = [names.index(row) + beside for row in values["row"]]
            look = looks[name] | {"linestyle": "none"}
            ax.hlines(places, values["low"], values["high"], color=look["color"])
            ax.plot(values["median"], places, label=name, **look)
        ax.set_yticks(range(len(names)), names)
        ax.set_ylim(len(names) - 0.5, -0.5)
        ax.set_title(panel)
        ax.legend(loc="center left", bbox_to_anchor=(1.01, 0.5))
    axes[-1].set_xlabel("ratio of times")
    return figure


def slots(data: pd.DataFrame) -> Figure:
    several = data["panel"].nunique() > 1
    data = data.assign(
        row=data["label"] + (" (" + data["panel"] + ")" if several else ""), rate=100 * data["errors"] / data["texts"]
    )
    names = list(data["row"].unique())
    figure, (heat, bars) = panels(2, columns=2, height=1.5 + 0.27 * len(names))
    heat.get_gridspec().set_width_ratios((3, 2))
    by_slot = data.groupby(["row", "slot"], sort=False)["rate"].sum().unstack()[list(data["slot"].unique())].loc[names]
    heat_map(
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


def similarities(data: pd.DataFrame) -> Figure:
    """A heat map for each matrix, of numbers of directions by numbers of directions; means over seeds."""
    most = data.groupby("panel")["first"].nunique().max()
    figure, axes = panels(data["panel"].nunique(), columns=2, height=0.9 + 0.2 * most)
    for (panel, rows), ax in zip(data.groupby("panel", sort=False), axes, strict=True):
        table = rows.groupby(["first", "second"], sort=False)["similarity"].mean().unstack()
        heat_map(ax, table, "", 2, limits=(0, 1))
        ax.set_title(panel)
        ax.set_xlabel(data["across"].iloc[0])
    return figure
