"""A row of E2E as the model sees it, token by token: what is read, and where the loss is."""

from __future__ import annotations

from itertools import accumulate
from textwrap import shorten
from typing import Any

from publish.figure_style import Figure, plt
from tasks.e2e.data import Example, encode

READ, LEARNT, END = "#d9d9d9", "#f5a742", "#c84200"
LINE = 88  # characters


def token_picture(example: Example, tokenizer: Any) -> Figure:
    """One box a token, in the order of the text: grey is read, orange carries a loss, dark orange ends the text."""
    row = encode(example, tokenizer)
    words = [shorten(repr(tokenizer.decode([token]))[1:-1], 18) or "·" for token in row["input_ids"]]
    colours = [READ if label < 0 else LEARNT for label in row["labels"]]
    colours[-1] = END
    ends = list(accumulate(len(word) + 1.2 for word in words))
    lines = int(ends[-1] // LINE) + 1
    figure, axes = plt.subplots(figsize=(8, 0.36 * lines + 0.5))
    for word, colour, end in zip(words, colours, ends, strict=True):
        line, place = divmod(end - len(word) - 1.2, LINE)
        box = {"facecolor": colour, "edgecolor": "none", "boxstyle": "square,pad=0.25"}
        ink = "white" if colour == END else "black"
        axes.text(place, -line, word, family="monospace", fontsize=7.5, color=ink, bbox=box, va="center")
    for colour, meaning in ((READ, "read"), (LEARNT, "carries the loss"), (END, "the end, learnt too")):
        axes.plot([], [], "s", color=colour, label=meaning, markersize=9)
    axes.legend(loc="upper left", bbox_to_anchor=(0, 0), ncols=3)
    axes.set(xlim=(0, LINE + 18), ylim=(-lines + 0.4, 0.6))
    axes.axis("off")
    return figure
