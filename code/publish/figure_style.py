"""One look for all figures: legible in grey, the same bytes when drawn twice, and traceable to their numbers.

A method has one look in all figures. Looks differ in marker and line as well as in colour. Colours beside each other
differ in brightness. Each file carries the SHA-256 of the CSV it was drawn from, and one of its own bytes. So a stale
or damaged picture is found without comparing pixels, which differ between versions of Matplotlib.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from io import BytesIO
from itertools import cycle
from pathlib import Path
from typing import Any

import matplotlib

from files import write_atomically
from publish.figure_data import digest, sealed

matplotlib.use("Agg")
from matplotlib import pyplot as plt
from matplotlib.axes import Axes
from matplotlib.figure import Figure

plt.rcParams.update({
    "figure.dpi": 100, "savefig.dpi": 160, "figure.constrained_layout.use": True, "pdf.fonttype": 42,
    "figure.constrained_layout.w_pad": 0.08,  # a PDF's letters are wider than the pixels that are measured
    "font.size": 9, "axes.titlesize": 9, "axes.labelsize": 9, "legend.fontsize": 9, "figure.titlesize": 10,
    "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True, "grid.alpha": 0.25,
    "axes.titlelocation": "left", "legend.frameon": False, "lines.markersize": 5, "lines.linewidth": 1.4,
    "hatch.linewidth": 0.6, "legend.columnspacing": 1.2,
})  # fmt: skip

FIRST = "full fine-tuning"  # always listed first, with a look of its own
LOOKS = {  # names that share it -> colour, marker, its filling, dashes and gaps of the line; a family has one hue
    FIRST: ("#1a1a1a", "s", "full", ""),
    "full fine-tuning from MNLI": ("#8c8c8c", "s", "none", "31"),
    "LoRA r=1": ("#fdd0a2", "<", "full", "13"),
    "LoRA r=2": ("#fdae6b", "v", "full", "32"),
    "LoRA r=4": ("#f57c1f", "^", "full", "7212"),
    "LoRA r=8, LoRA": ("#c84200", "o", "full", "91"),
    "LoRA† r=8": ("#fdc692", "o", "none", "13"),
    "LoRA r=16": ("#8c2d04", ">", "full", "311111"),
    "LoRA r=64": ("#5a1a00", "H", "full", "55"),
    "LoRA r=1 on all matrices": ("#d9c6f0", "<", "bottom", "1113"),
    "LoRA r=4 on all matrices": ("#9e7fd1", "^", "bottom", "5112"),
    "LoRA r=8 on all matrices": ("#6a3fb5", "o", "bottom", "92"),
    "LoRA r=64 on all matrices": ("#2d0a66", "H", "bottom", "5511"),
    "LoRA r=4 on the MLP": ("#7fbf7b", "^", "right", "2112"),
    "rank stabilised": ("#6b6b00", "<", "none", "7212"),
    "LoRA plus": ("#949400", "P", "none", "55"),
    "all matrices": ("#d6cc00", "D", "none", "311111"),
    "FT Top2, FT Top3": ("#a26bb8", "D", "full", "31"),
    "BitFit": ("#5ab4ac", "P", "full", "51"),
    "Adapter H, Adapter H 6.0M": ("#2166ac", "X", "full", "11"),
    "Adapter H 0.8M": ("#4a90c4", "X", "none", "3111"),
    "Adapter H 0.24M": ("#b3cde3", "X", "bottom", "3111"),
    "Adapter L": ("#2e7fb5", "p", "full", "12"),
    "Adapter L wide, Adapter L 11M": ("#08306b", "p", "none", "3111"),
    "Adapter L 23M": ("#92c5de", "p", "left", "55"),
    "Adapter P, Adapter P 3.0M": ("#74a9cf", "*", "full", "32"),
    "Adapter P 0.8M": ("#3690c0", "*", "none", "73"),
    "Adapter D, Adapter D 0.3M": ("#023858", "h", "full", "7212"),
    "Adapter D 0.9M": ("#7bccc4", "h", "none", "55"),
    "PreLayer": ("#a50f6b", "d", "full", "73"),
    "adaptive": ("#6a7fdb", "d", "none", "51"),
    "sequential fixed frozen": ("#00441b", "^", "left", "31"),
    "sequential plateau frozen": ("#4daf4a", "^", "none", "11"),
    "sequential fixed hybrid": ("#1b7837", "v", "left", "7212"),
    "sequential plateau hybrid": ("#8bc34a", "v", "none", "13"),
    "sequential fixed unfrozen": ("#2e8b57", ">", "left", "3111"),
    "sequential plateau unfrozen": ("#a1d99b", ">", "none", "32"),
}
OURS = "#c84200"  # LoRA, where one colour stands for all its rows
HATCHES = ("", "///", "...", "xx")
GREYS = ("#252525", "#737373", "#bdbdbd", "#ffffff")
BRIGHTNESS = "cividis"  # brighter is more, in grey too
WIDTH = 6.3  # inches of a page: what is written at 9 points is read at 7 or more


def _look(colour: str, marker: str, fill: str, dashes: str) -> dict[str, Any]:
    line = (0, tuple(map(int, dashes))) if dashes else "-"
    return {"color": colour, "marker": marker, "fillstyle": fill, "linestyle": line}


def styles(labels: Iterable[str]) -> dict[str, dict[str, Any]]:
    """{label: marker, line and colour}, full fine-tuning first.

    A method looks the same in every figure. Other labels get the looks that no method of the figure has.
    """
    named = {name: look for names, look in LOOKS.items() for name in names.split(", ")}
    names = sorted(dict.fromkeys(labels), key=lambda name: name != FIRST)
    taken = {LOOKS[FIRST], *(named[name] for name in names if name in named)}
    spare = cycle(look for look in LOOKS.values() if look not in taken)
    return {name: _look(*(named.get(name) or next(spare))) for name in names}


def panels(number: int, columns: int, height: float, width: float = WIDTH) -> tuple[Figure, list[Axes]]:
    """A figure with `number` axes, each `height` inches high, in rows of at most `columns`."""
    rows = math.ceil(number / columns)
    columns = math.ceil(number / rows)
    figure, grid = plt.subplots(rows, columns, figsize=(width, height * rows), squeeze=False)
    axes = list(grid.flat)
    for unused in axes[number:]:
        unused.remove()
    return figure, axes[:number]


def wide_and_small(number: int, wide: float, small: float) -> tuple[Figure, list[Axes]]:
    """A figure with one axes across it, `wide` inches high, and the others below, three a row, `small` inches high."""
    rows = math.ceil((number - 1) / 3)
    figure = plt.figure(figsize=(WIDTH, wide + small * rows))
    grid = figure.add_gridspec(1 + rows, 3, height_ratios=(wide, *[small] * rows))
    places = (grid[0, :], *(grid[1 + place // 3, place % 3] for place in range(number - 1)))
    return figure, [figure.add_subplot(place) for place in places]


def legend_below(figure: Figure, handles: dict[str, Any]) -> None:
    """One legend below all panels, in as many columns as its longest name leaves room for."""
    columns = max(1, min(len(handles), int(figure.get_figwidth() / (0.5 + 0.06 * max(map(len, handles))))))
    figure.set_figheight(figure.get_figheight() + 0.2 * math.ceil(len(handles) / columns))
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=columns)


def save(figure: Figure, stem: Path, data: str) -> list[Path]:
    """Write `stem`.png and `stem`.pdf whole, `sealed`, without a date, with the digest of `data`; close the figure."""
    source = digest(data).decode()
    metadata = {"png": {"Description": source}, "pdf": {"Subject": source, "CreationDate": None}}
    for suffix, facts in metadata.items():
        picture = BytesIO()
        figure.savefig(picture, format=suffix, metadata=facts)
        write_atomically(Path(f"{stem}.{suffix}"), sealed(picture.getvalue()))
    plt.close(figure)
    return [Path(f"{stem}.{suffix}") for suffix in metadata]
