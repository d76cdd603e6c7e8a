"""One look for all figures: legible in grey, the same bytes when drawn twice, and traceable to their numbers.

Series differ in marker and line as well as in colour, and the colours differ in brightness. Each file carries the
SHA-256 of the CSV it was drawn from, so that a stale picture is found without comparing pixels, which differ between
versions of Matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import matplotlib

from figure_data import digest

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

plt.rcParams.update({
    "figure.dpi": 100, "savefig.dpi": 160, "figure.constrained_layout.use": True, "pdf.fonttype": 42,
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 9, "figure.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlelocation": "left", "legend.frameon": False, "lines.markersize": 5, "lines.linewidth": 1.4,
    "hatch.linewidth": 0.6,
})  # fmt: skip

FIRST = "full fine-tuning"  # always the first of SERIES
SERIES = (  # colour, marker, line; the brightness of neighbours differs
    ("#1a1a1a", "s", "-"), ("#e08214", "o", (0, (9, 1))), ("#2166ac", "^", "--"), ("#91cf60", "D", "-."),
    ("#762a83", "v", ":"), ("#fdb863", "P", (0, (5, 1))), ("#1b7837", "X", (0, (3, 1, 1, 1))),
    ("#878787", "<", (0, (1, 1))), ("#c2a5cf", ">", (0, (7, 3))), ("#00441b", "*", (0, (3, 1, 1, 1, 1, 1))),
    ("#d6604d", "p", (0, (2, 3))), ("#fdd49e", "h", (0, (5, 5))),
)  # fmt: skip
HATCHES = ("", "///", "...", "xx")
GREYS = ("#252525", "#737373", "#bdbdbd", "#ffffff")
BRIGHTNESS = "cividis"  # brighter is more, in grey too
PANEL = (3.3, 2.7)  # inches


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{label: marker, line and colour}, in the order of the labels; full fine-tuning looks the same everywhere."""
    names = sorted(dict.fromkeys(labels), key=lambda name: name != FIRST)
    looks = {}
    for number, name in enumerate(names, start=0 if FIRST in names else 1):
        colour, marker, line = SERIES[number % len(SERIES)]
        hollow = "none" if number >= len(SERIES) else "full"
        looks[name] = {"color": colour, "marker": marker, "linestyle": line, "fillstyle": hollow}
    return looks


def panels(number: int, columns: int = 3, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """A figure with so many axes, in rows of at most `columns`."""
    rows = math.ceil(number / columns)
    columns = math.ceil(number / rows)
    figure, grid = plt.subplots(rows, columns, figsize=(size[0] * columns, size[1] * rows), squeeze=False)
    axes = list(grid.flat)
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def legend_below(figure: Figure, handles: dict[str, Any]) -> None:
    """One legend for all panels, in as many columns as its longest name leaves room for, below and not beside them."""
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.75 + 0.07 * max(map(len, handles))))))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(handles) / columns))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def save(figure: Figure, stem: Path, data: str) -> list[Path]:
    """Write `stem`.png and `stem`.pdf, without a date and with the digest of `data`; close the figure."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    source = digest(data).decode()
    metadata = {"png": {"Description": source}, "pdf": {"Subject": source, "CreationDate": None}}
    for suffix, facts in metadata.items():
        figure.savefig(f"{stem}.{suffix}", metadata=facts)
    plt.close(figure)
    return [Path(f"{stem}.{suffix}") for suffix in metadata]
