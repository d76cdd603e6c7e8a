"""Is everything that is generated still what the records give? It is made in memory and compared byte for byte.

The check fails after a hand edit of a table, of a figure's numbers or of a page's generated block. It fails after a
record is added, changed or deleted, and where a file is missing, damaged or left over. A picture carries a digest of
the numbers it was drawn from and one of its own bytes, which are compared. Pixels are not: they differ between
platforms and versions of Matplotlib.
"""

from __future__ import annotations

from pathlib import Path

import files
from files import results_are_own
from publish.figure_data import digest, is_whole
from publish.pages import PAGES, page
from publish.report import stale
from publish.result_files import damaged, pictures, present, result_texts
from publish.shipped_adapters import stale as stale_adapters

THE_END = "the end of the file"


def check() -> str:
    """Say what is what the records give; ValueError with a list of what differs in it.

    Pages, report and poster tell of the project's own results, and are compared with no others.
    """
    own = results_are_own()
    if lines := differences() + (stale() + stale_adapters() if own else []):
        listed = "\n".join(f"- {line}" for line in lines)
        raise ValueError(
            f"what is generated differs from what the records give:\n{listed}\n"
            "`make summary documents` makes it anew and overwrites changes by hand: change the source instead"
        )
    if own:
        return "tables, figures, pages, report and poster are what the records give"
    return f"tables and figures are what the records give; pages, report and poster are not of {files.RESULTS}"


def differences() -> list[str]:
    """A sentence for each file of the results, and for each page that tells of them, that would be made otherwise."""
    texts, names = result_texts(), present()
    drawn = pictures(texts)
    lines = [f"{name} is damaged or a copy, and passed over" for name in damaged()]
    lines += [f"{name} is missing" for name in sorted((texts.keys() | drawn.keys()) - names)]
    lines += [f"{name} follows from no record" for name in sorted(names - texts.keys() - drawn.keys())]
    for name in sorted(texts.keys() & names):
        lines += _difference(name, texts[name], _text(files.RESULTS / name))
    for name in sorted(drawn.keys() & names):
        picture = (files.RESULTS / name).read_bytes()
        if digest(drawn[name]) not in picture:
            lines.append(f"{name} is not drawn from the numbers beside it")
        elif not is_whole(picture):
            lines.append(f"{name} is damaged: these are not the bytes that were drawn")
    if not results_are_own():
        return lines
    for name in PAGES:
        text = _text(files.ROOT / name)
        try:
            lines += _difference(name, page(name, text), text)
        except ValueError as error:
            lines.append(str(error))
    return lines


def _text(path: Path) -> str:
    return path.read_bytes().decode(errors="replace")  # a damaged byte differs, whatever it stands for


def _difference(name: str, expected: str, found: str) -> list[str]:
    """The first line that differs, cut around its first differing character."""
    if expected == found:
        return []
    pairs = zip([*expected.split("\n"), THE_END], [*found.split("\n"), THE_END], strict=False)
    number, ours, theirs = next((i, a, b) for i, (a, b) in enumerate(pairs, 1) if a != b)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = slice(max(0, same - 40), same + 60)
    return [f"{name}, line {number}: expected {ours[shown]!r}, found {theirs[shown]!r}"]
