"""Is everything that is generated still what the records give? It is made in memory and compared byte for byte.

The check fails after a hand edit of a table, of a figure's numbers or of the README's results. It fails after a record
is added, changed or deleted, and where a file is missing or left over. A picture carries a digest of the
numbers it was drawn from, which is compared. Pixels are not: they differ between platforms and versions of Matplotlib.
"""

from __future__ import annotations

import files
from publish.figure_data import digest
from publish.readme import readme
from publish.report import stale
from publish.result_files import pictures, present, result_texts

THE_END = "the end of the file"


def check() -> None:
    """Raise ValueError with a list of what differs in the results, the README, the report and the poster."""
    if lines := differences() + stale():
        listed = "\n".join(f"- {line}" for line in lines)
        raise ValueError(
            f"what is generated differs from what the records give:\n{listed}\n"
            "`make summary documents` makes it anew and overwrites changes by hand: change the source instead"
        )


def differences() -> list[str]:
    """A sentence for each file of the results, and for the README, that would be made otherwise now."""
    texts, names = result_texts(), present()
    drawn = pictures(texts)
    lines = [f"{name} is missing" for name in sorted((texts.keys() | drawn.keys()) - names)]
    lines += [f"{name} follows from no record" for name in sorted(names - texts.keys() - drawn.keys())]
    for name in sorted(texts.keys() & names):
        lines += _difference(name, texts[name], (files.RESULTS / name).read_bytes().decode())
    for name in sorted(drawn.keys() & names):
        if digest(drawn[name]) not in (files.RESULTS / name).read_bytes():
            lines.append(f"{name} is not drawn from the numbers beside it")
    page = (files.ROOT / "README.md").read_bytes().decode()
    try:
        return lines + _difference("README.md", readme(page), page)
    except ValueError as error:
        return [*lines, str(error)]


def _difference(name: str, expected: str, found: str) -> list[str]:
    """The first line that differs, cut around its first differing character."""
    if expected == found:
        return []
    pairs = zip([*expected.split("\n"), THE_END], [*found.split("\n"), THE_END], strict=False)
    number, ours, theirs = next((i, a, b) for i, (a, b) in enumerate(pairs, 1) if a != b)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = slice(max(0, same - 40), same + 60)
    return [f"{name}, line {number}: expected {ours[shown]!r}, found {theirs[shown]!r}"]
