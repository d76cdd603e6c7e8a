"""Records -> `results/summary.csv`, `results/tables`, `results/figures` and the README's results.

python code/make_summary.py

Runs in seconds, without torch and without a model, and gives the same bytes twice. Files of an earlier summary that no
record supports any more are removed. `make_check.py` says whether what is there is what this would write.
"""

from __future__ import annotations

import sys

import paths
from figures import draw_text
from records import write_atomically
from summary_files import files, pictures, present, readme


def main() -> None:
    texts = files()
    for name in present() - texts.keys() - pictures(texts).keys():
        (paths.RESULTS / name).unlink()
    for name, text in texts.items():
        path = paths.RESULTS / name
        write_atomically(path, text)
        if path.parent.name == "figures":
            table, kind, scale = path.stem.rsplit("-", 2)
            draw_text(text, kind, table, scale, path.parent)
    print(f"{len(texts)} texts and {len(pictures(texts))} pictures in {paths.RESULTS}")
    page = paths.ROOT / "README.md"
    try:
        write_atomically(page, readme(page.read_text(encoding="utf-8")))
    except ValueError as error:
        sys.exit(f"error: the README is left as it is: {error}")


if __name__ == "__main__":
    main()
