"""Is everything that is generated from the records what the records give? Rebuilds it in memory and compares bytes.

python code/make_check.py

Red after a hand edit of a table, of a figure's numbers or of the README's results, after a record is added, changed or
deleted, and where a file is missing or left over. Pictures are compared by the numbers they were drawn from, whose
digest they carry, and not by pixels, which differ between versions of Matplotlib and between platforms.
"""

from __future__ import annotations

import sys

import paths
from documents import stale
from figure_data import digest
from summary_files import files, pictures, present, readme

THE_END = "the end of the file"


def differences() -> list[str]:
    """What is not as it would be generated now, a sentence each."""
    texts, there = files(), present()
    drawn = pictures(texts)
    found = [f"{name} is missing" for name in sorted((texts.keys() | drawn.keys()) - there)]
    found += [f"{name} follows from no record" for name in sorted(there - texts.keys() - drawn.keys())]
    for name in sorted(texts.keys() & there):
        found += _difference(name, texts[name], (paths.RESULTS / name).read_bytes().decode())
    for name in sorted(drawn.keys() & there):
        if digest(drawn[name]) not in (paths.RESULTS / name).read_bytes():
            found.append(f"{name} is not drawn from the numbers beside it")
    page = (paths.ROOT / "README.md").read_bytes().decode()
    try:
        return found + _difference("README.md", readme(page), page)
    except ValueError as error:
        return [*found, str(error)]


def _difference(name: str, expected: str, there: str) -> list[str]:
    """The first line that differs, from a little before the first character that does."""
    if expected == there:
        return []
    pairs = zip([*expected.split("\n"), THE_END], [*there.split("\n"), THE_END], strict=False)
    number, ours, theirs = next((i, a, b) for i, (a, b) in enumerate(pairs, 1) if a != b)
    same = next((i for i, (a, b) in enumerate(zip(ours, theirs, strict=False)) if a != b), min(len(ours), len(theirs)))
    shown = slice(max(0, same - 40), same + 60)
    return [f"{name}, line {number}: expected {ours[shown]!r}, found {theirs[shown]!r}"]


def main() -> None:
    if found := differences() + stale():
        listed = "\n".join(f"- {difference}" for difference in found)
        sys.exit(
            f"what is generated differs from what the records give:\n{listed}\n"
            "`make summary documents` makes it anew; what was changed by hand is then lost: change its source instead"
        )
    print("tables, figures, README, report and poster are what the records give")


if __name__ == "__main__":
    main()
