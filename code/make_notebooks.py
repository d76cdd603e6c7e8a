"""notebooks/*.py -> notebooks/*.ipynb, executed: each notebook is written as text and shown with its outputs.

python code/make_notebooks.py             all of them
python code/make_notebooks.py 01 07       these
python code/make_notebooks.py --unchanged as without, and red where one shows other words than it did before
python code/make_notebooks.py --check     executes nothing: does each notebook have the cells of its source?

A source is in the percent format that editors and jupytext read: a line `# %%` begins a cell of code, `# %% [markdown]`
one of prose. The build writes the badge and the set-up cell, the same in all notebooks, into the source where they
differ, then executes it from top to bottom without a GPU and without a network. It does so on an empty `quick` scale
and with the records of the repository, so that what is shown is what a first reader sees, and leaves no record behind.

What is committed is stable: no execution times, no progress bars, no warnings of a terminal, no identifiers that are
drawn at random. The notebook carries a SHA-256 of its cells and outputs. `--check` compares the cells with the source's
and this digest with the outputs: it is red after an edit of either file by hand. It is red as well if a notebook
that shows what is recorded was built from other records. Whether the code that shows the outputs says something else
by now is known by executing it: `--unchanged` compares headings, notes and the names of rows and columns.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import re
import shutil
import sys
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import paths
import summary_files
from records import write_atomically

REPOSITORY, REVISION = "OWNER/lora-reproduced", "main"  # on GitHub; what Colab opens and clones
NOTEBOOKS = paths.ROOT / "notebooks"
SHOWS_RECORDS = ("07_results",)
BADGE = (
    "# [![Open in Colab](https://colab.research.google.com/assets/colab-badge.svg)]"
    "(https://colab.research.google.com/github/{repository}/blob/{revision}/notebooks/{name}.ipynb)"
)
SETUP = """\
# %%
# Set-up. On Colab: fetch the code and install what is missing. Elsewhere: find the code, no more.
import os
import subprocess
import sys
from pathlib import Path

ON_COLAB = "google.colab" in sys.modules
if ON_COLAB:
    root, url = Path("lora"), os.environ.get("LORA_REPOSITORY", "https://github.com/{repository}")
    if not root.exists():
        subprocess.run(["git", "clone", "--quiet", "--depth=1", "--branch={revision}", url, str(root)], check=True)
else:
    root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "code" / "lora.py").exists())
sys.path.insert(0, str(root.resolve() / "code"))
if ON_COLAB:
    from colab import install_missing

    install_missing()

"""
CELL = re.compile(r"^# %%.*\n", re.MULTILINE)
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
SECONDS = 1800  # that one cell may take


def stamped(source: str, name: str) -> str:
    """The source with the badge and the set-up cell as they are now; ValueError where it has no place for them."""
    known = {"name": name, "repository": REPOSITORY, "revision": REVISION}
    for what, pattern, text in (
        ("line `# [![Open in Colab]...`", r"(?m)^# \[!\[Open in Colab\].*$", BADGE.format(**known)),
        ("cell that begins `# Set-up.`", r"(?ms)^# %%\n# Set-up\..*?(?=^# %%)", SETUP.format(**known)),
    ):
        source, number = re.subn(pattern, lambda _, text=text: text, source)
        if number != 1:
            raise ValueError(f"expected one {what} in {name}.py, found {number}; copy it from another notebook")
    return source


def cells(source: str) -> list[tuple[str, str]]:
    """(type, text) of every cell of a percent-format source; ValueError for text before the first."""
    before, *texts = CELL.split(source)
    if before.strip():
        raise ValueError(f"expected a line `# %%` first, found {before.splitlines()[0]!r}")
    kinds = ["markdown" if "[markdown]" in line else "code" for line in CELL.findall(source)]
    prose = re.compile(r"^# ?", re.MULTILINE)
    return [
        (kind, prose.sub("", text.strip()) if kind == "markdown" else text.strip())
        for kind, text in zip(kinds, texts, strict=True)
    ]


def notebook(source: str) -> nbformat.NotebookNode:
    """The notebook of a source, not executed; cells are named by their place, not at random."""
    new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}
    made = [new[kind](text, id=f"cell-{number}") for number, (kind, text) in enumerate(cells(source))]
    return nbformat.v4.new_notebook(cells=made, metadata=METADATA)


def execute(book: nbformat.NotebookNode, results: Path, checkpoints: Path) -> None:
    """Run all cells, as in `notebooks/`, with these folders; what a first reader sees is kept of the outputs.

    Raises CellExecutionError, which shows the cell and its error.
    """
    hidden = {"CUDA_VISIBLE_DEVICES": "", "HF_HUB_OFFLINE": "1"}
    folders = {"LORA_RESULTS_DIR": str(results), "LORA_CHECKPOINT_DIR": str(checkpoints)}
    client = NotebookClient(
        book, timeout=SECONDS, startup_timeout=300, kernel_name="python3", store_widget_state=False,
        record_timing=False, resources={"metadata": {"path": str(NOTEBOOKS)}},
    )  # fmt: skip
    client.execute(env=os.environ | hidden | folders)
    for cell in book.cells:
        cell.metadata = {}
        if cell.cell_type == "code":
            cell.outputs = _lasting(cell.outputs)


def _lasting(outputs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """What remains when a cell has run; printed text in one piece, however it was flushed."""
    kept: list[dict[str, Any]] = []
    for output in outputs:
        if _passing(output):
            continue
        if output["output_type"] == "stream" and kept and kept[-1]["output_type"] == "stream":
            kept[-1]["text"] += output["text"]
        else:
            kept.append(output)
    return kept


def _passing(output: dict[str, Any]) -> bool:
    """Whether it is only there while a cell runs: bars, and what is written to stderr."""
    data = output.get("data", {})
    bar = "application/vnd.jupyter.widget-view+json" in data or "<progress" in "".join(data.get("text/html", ""))
    return bar or output.get("name") == "stderr"


def digest(book: nbformat.NotebookNode, name: str) -> str:
    """Of everything that is shown, and of the records it was made from if it shows those."""
    seen = [
        (cell.cell_type, cell.source.replace(REPOSITORY, ""), cell.get("outputs"), cell.get("execution_count"))
        for cell in book.cells
    ]
    text = json.dumps(seen, sort_keys=True) + (summary_files.files()["summary.csv"] if name in SHOWS_RECORDS else "")
    return hashlib.sha256(text.encode()).hexdigest()


def wording(book: nbformat.NotebookNode) -> list[str]:
    """Headings, notes and the names of rows and columns that are shown: no number of a run is among them."""
    shown = [output.get("data", {}) for cell in book.cells for output in cell.get("outputs", [])]
    return [
        text
        for data in shown
        for text in (data.get("text/markdown", ""), *re.findall("<th[^>]*>(.*?)</th>", data.get("text/html", "")))
    ]


def build(source: Path, target: Path) -> None:
    """Execute one source into a notebook; its own runs are recorded in a folder that is gone afterwards."""
    text = stamped(source.read_text(encoding="utf-8"), source.stem)
    write_atomically(source, text)
    book = notebook(text)
    with TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        if paths.RESULTS.exists():
            shutil.copytree(paths.RESULTS, results, ignore=shutil.ignore_patterns("quick"))
        execute(book, results, Path(folder) / "checkpoints")
    book.metadata = METADATA | {"built": digest(book, source.stem)}  # the kernel's version is not part of it
    write_atomically(target, nbformat.writes(book) + "\n")


def difference(source: Path) -> str | None:
    """In what a source and its notebook do not agree; None if they do."""
    text, target = source.read_text(encoding="utf-8"), source.with_suffix(".ipynb")
    if text != stamped(text, source.stem):
        return f"{source.name}: the badge or the set-up cell is not that of code/make_notebooks.py"
    if not target.exists():
        return f"{target.name} is missing"
    book = nbformat.read(target, as_version=4)
    theirs = [(cell.cell_type, cell.source) for cell in book.cells]
    for number, (ours, there) in enumerate(zip(cells(text), theirs, strict=False), 1):
        if ours != there:
            return f"{target.name}: cell {number} is not that of {source.name}"
    if len(theirs) != len(cells(text)):
        return f"{target.name}: {len(theirs)} cells, {len(cells(text))} in {source.name}"
    if book.metadata.get("built") != digest(book, source.stem):
        cause = ", or made from other records" if source.stem in SHOWS_RECORDS else ""
        return f"{target.name}: its outputs are not those of a build{cause}"
    return None


def chosen(words: list[str]) -> list[Path]:
    """The sources whose names begin so, all without a word; ValueError for a word that none begins with."""
    sources = sorted(NOTEBOOKS.glob("*.py"))
    for word in words:
        if not any(path.name.startswith(word) for path in sources):
            raise ValueError(f"no notebook is called {word!r}; they are {', '.join(path.stem for path in sources)}")
    return [path for path in sources if not words or path.name.startswith(tuple(words))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("notebooks", nargs="*", metavar="NOTEBOOK", help="such as 01 or 07_results (default: all)")
    how = parser.add_mutually_exclusive_group()
    how.add_argument("--check", action="store_true", help="execute nothing, compare sources and notebooks")
    how.add_argument("--unchanged", action="store_true", help="other words than before are an error")
    arguments = parser.parse_args()
    try:
        sources = chosen(arguments.notebooks)
        if not arguments.check:
            changed = []
            for source in sources:
                print(f"{source.stem} ...", flush=True)
                target = source.with_suffix(".ipynb")
                before = wording(nbformat.read(target, as_version=4)) if target.exists() else []
                build(source, target)
                changed += [source.stem] if wording(nbformat.read(target, as_version=4)) != before else []
            if changed and arguments.unchanged:
                sys.exit(f"these showed other words than the code gives now: {', '.join(changed)}; they are built anew")
        elif found := [text for text in map(difference, sources) if text]:
            listed, names = "\n".join(f"- {text}" for text in found), " ".join(text[:2] for text in found)
            sys.exit(
                f"notebooks differ from their sources:\n{listed}\n`python code/make_notebooks.py {names}` mends that"
            )
    except (ValueError, CellExecutionError) as error:
        sys.exit(f"error: {error}")
    print(f"{len(sources)} notebooks {'agree with their sources' if arguments.check else 'built'}")


if __name__ == "__main__":
    main()
