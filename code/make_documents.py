"""Summary, claims and declarations -> the report and the poster as PDF.

python code/make_documents.py

Writes `report/facts.json`, compiles `report/report.typ`, `poster/poster.typ` and the README's picture of the method
with Typst, which comes as a Python package, and sets the README's tables of costs and speed. Seconds; no TeX, no model.
A sentence that the summary contradicts stops it.
"""

from __future__ import annotations

import sys

import paths
from claims import read_summary
from documents import FACTS, FITS, compile_document, facts_text, method_figure, readme
from records import write_atomically


def main() -> None:
    try:
        write_atomically(paths.ROOT / FACTS, facts_text(read_summary()))
        for document in FITS:
            path = paths.ROOT / document / f"{document}.pdf"
            path.write_bytes(compile_document(document))
            print(path)
        (paths.ROOT / "report" / "method.svg").write_bytes(method_figure())
        page = paths.ROOT / "README.md"
        write_atomically(page, readme(page.read_text(encoding="utf-8")))
    except (FileNotFoundError, ValueError, RuntimeError) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
