"""notebooks/*.py -> notebooks/*.ipynb, executed: each notebook is written as text and shown with its outputs.

A source is in jupytext's percent format: a line `# %%` begins a cell of code, `# %% [markdown]` one of prose. The build
writes the badge and the set-up cell, the same in all notebooks, into the source. Then it executes all cells without a
GPU and without a network. It starts with the repository's records and an empty `quick` scale, as a first reader does,
and leaves no record behind.

What is committed is stable: no execution times, no progress bars, no warnings of a terminal, no identifiers that are
drawn at random. A notebook carries a SHA-256 of its cells and outputs. `check` compares the cells with the source's
and the digest with the outputs. It fails after a hand edit of either file, and if a notebook that shows records was
built from other ones. Only a new build tells whether the code now shows other words: `unchanged` compares headings,
notes and the names of rows and columns.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import jupytext
import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

import files
from files import write_atomically
from publish import pages, result_files
from runs.records import provenance

REPOSITORY, REVISION = "OWNER/lora-reproduced", "main"  # on GitHub; what Colab opens and clones
NOTEBOOKS = files.ROOT / "notebooks"
SHOWS_RECORDS = ("07_results",)
SHOWS_TABLES = {  # tables of scale `cpu` that a notebook shows or concludes from: how their names begin
    "02_e2e_gpt2": ("table3", "decoding"), "03_glue": ("table2",), "04_rank_and_weights": ("table6", "table5"),
    "05_rank_over_time": ("rank-over-time", "table3"), "06_pitfalls": ("pitfalls", "table3"),
    "09_inside_the_update": ("subspaces",),
}  # fmt: skip
SHOWS_BENCHMARK = ("08_costs_and_many_tasks",)  # as the page of costs does
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
    clone = ["git", "clone", "--quiet", "--depth=1", "--branch={revision}", url, str(root)]
    if not root.exists() and subprocess.run(clone).returncode:
        raise RuntimeError(f"{{url}} cannot be cloned: write your copy's name in the place of OWNER in this cell")
else:
    root = next(folder for folder in (Path.cwd(), *Path.cwd().parents) if (folder / "code" / "lora.py").exists())
sys.path.insert(0, str(root.resolve() / "code"))
if ON_COLAB:
    from colab import install_missing

    install_missing()

"""
METADATA = {
    "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
    "language_info": {"name": "python"},
}
ON_A_GPU = ("02", "03", "04", "05", "06", "08", "09")  # without this, Colab gives a processor
GPU = {"accelerator": "GPU", "colab": {"gpuType": "A100"}}
SECONDS = 1800  # limit for one cell


def stamped(source: str, name: str) -> str:
    """The source with the badge and the set-up cell as they are now; ValueError where it has no place for them."""
    known = {"name": name, "repository": REPOSITORY, "revision": REVISION}
    for part, pattern, text in (
        ("line `# [![Open in Colab]...`", r"(?m)^# \[!\[Open in Colab\].*$", BADGE.format(**known)),
        ("cell that begins `# Set-up.`", r"(?ms)^# %%\n# Set-up\..*?(?=^# %%)", SETUP.format(**known)),
    ):
        source, number = re.subn(pattern, lambda _, text=text: text, source)
        if number != 1:
            raise ValueError(f"expected one {part} in {name}.py, found {number}; copy it from another notebook")
    return source


def metadata(name: str) -> dict[str, Any]:
    """What a notebook asks for: a kernel, and a GPU if it trains at scale `paper`."""
    return METADATA | (GPU if name.startswith(ON_A_GPU) else {})


def notebook(source: str) -> nbformat.NotebookNode:
    """The notebook of a percent-format source, not executed; cells are numbered, not named at random."""
    book = nbformat.v4.new_notebook(metadata=METADATA)
    for number, cell in enumerate(jupytext.reads(source, fmt="py:percent").cells):
        new = {"markdown": nbformat.v4.new_markdown_cell, "code": nbformat.v4.new_code_cell}[cell.cell_type]
        book.cells.append(new(cell.source, id=f"cell-{number}"))
    return book


def texts(book: nbformat.NotebookNode) -> list[tuple[str, str]]:
    """(type, text) of every cell."""
    return [(cell.cell_type, cell.source) for cell in book.cells]


def execute(book: nbformat.NotebookNode, results: Path, checkpoints: Path) -> None:
    """Run all cells in `notebooks/` with these folders, and keep the outputs that last.

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
    """The outputs that remain when a cell has run; printed text is joined into one piece."""
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
    """Whether an output is for the time of the run only: a progress bar, or text on stderr."""
    data = output.get("data", {})
    bar = "application/vnd.jupyter.widget-view+json" in data or "<progress" in "".join(data.get("text/html", ""))
    return bar or output.get("name") == "stderr"


def digest(book: nbformat.NotebookNode, name: str) -> str:
    """The SHA-256 of everything a notebook shows, and of what it shows of the records."""
    seen = [
        (cell.cell_type, cell.source.replace(REPOSITORY, ""), cell.get("outputs"), cell.get("execution_count"))
        for cell in book.cells
    ]
    text = json.dumps(seen, sort_keys=True) + "".join(_shown_results(name))
    return hashlib.sha256(text.encode()).hexdigest()


def _shown_results(name: str) -> list[str]:
    if name in SHOWS_BENCHMARK:
        return [pages.COSTS[block]() for block in ("efficiency", "table1", "speed")]
    tables = tuple(f"tables/{table}-" for table in SHOWS_TABLES.get(name, ()))
    shown = ("summary.csv",) if name in SHOWS_RECORDS else tables
    return [text for place, text in result_files.result_texts().items() if place.startswith(shown)] if shown else []


def wording(book: nbformat.NotebookNode) -> list[str]:
    """Headings, notes and the names of rows and columns that are shown: no number of a run is among them."""
    shown = [output.get("data", {}) for cell in book.cells for output in cell.get("outputs", [])]
    return [
        text
        for data in shown
        for text in (data.get("text/markdown", ""), *re.findall("<th[^>]*>(.*?)</th>", data.get("text/html", "")))
    ]


def build(source: Path, target: Path) -> None:
    """Execute one source into a notebook; its own runs are recorded in a temporary folder."""
    text = stamped(source.read_text(encoding="utf-8"), source.stem)
    write_atomically(source, text)
    book = notebook(text)
    with TemporaryDirectory() as folder:
        results = Path(folder) / "results"
        if files.RESULTS.exists():
            shutil.copytree(files.RESULTS, results, ignore=shutil.ignore_patterns("quick"))
        execute(book, results, Path(folder) / "checkpoints")
    book.metadata = metadata(source.stem) | {"built": digest(book, source.stem)}  # no version of a kernel
    write_atomically(target, nbformat.writes(book) + "\n")


def difference(source: Path) -> str | None:
    """The first difference between a source and its notebook; None if they agree."""
    text, target = source.read_text(encoding="utf-8"), source.with_suffix(".ipynb")
    if text != stamped(text, source.stem):
        return f"{source.name}: the badge or the set-up cell is not that of code/publish/notebooks.py"
    if not target.exists():
        return f"{target.name} is missing"
    book = nbformat.read(target, as_version=4)
    ours, theirs = texts(notebook(text)), texts(book)
    for number, (expected, found) in enumerate(zip(ours, theirs, strict=False), 1):
        if expected != found:
            return f"{target.name}: cell {number} is not that of {source.name}"
    if len(theirs) != len(ours):
        return f"{target.name}: {len(theirs)} cells, {len(ours)} in {source.name}"
    if book.metadata.get("built") != digest(book, source.stem):
        shows_results = source.stem in (*SHOWS_RECORDS, *SHOWS_TABLES, *SHOWS_BENCHMARK)
        cause = ", or made from other records" if shows_results else ""
        return f"{target.name}: its outputs are not those of a build{cause}"
    return None


def chosen(words: list[str]) -> list[Path]:
    """The sources whose names begin with one of the words, or all; ValueError for a word that fits none."""
    sources = sorted(NOTEBOOKS.glob("*.py"))
    for word in words:
        if not any(path.name.startswith(word) for path in sources):
            raise ValueError(f"no notebook is called {word!r}; they are {', '.join(path.stem for path in sources)}")
    return [path for path in sources if not words or path.name.startswith(tuple(words))]


def build_all(sources: list[Path], unchanged: bool = False) -> None:
    """Build each. Raises RuntimeError where a cell fails; with `unchanged`, ValueError if one shows other words.

    ValueError also where code is not committed: the runs of a notebook would say so, and would say it for ever.
    """
    if provenance()["git_dirty"]:
        raise ValueError(
            "notebooks show runs of committed code, and something in code/ or data/ is not: commit it first"
        )
    changed = []
    for source in sources:
        print(f"{source.stem} ...", flush=True)
        target = source.with_suffix(".ipynb")
        before = wording(nbformat.read(target, as_version=4)) if target.exists() else []
        try:
            build(source, target)
        except CellExecutionError as error:
            raise RuntimeError(f"{source.name} stopped at a cell: {error}") from error
        changed += [source.stem] if wording(nbformat.read(target, as_version=4)) != before else []
    if changed and unchanged:
        raise ValueError(f"these showed other words than the code gives now: {', '.join(changed)}; they are built anew")


def check(sources: list[Path]) -> None:
    """Raise ValueError with a list of the notebooks that differ from their sources; nothing is executed."""
    if lines := [line for line in map(difference, sources) if line]:
        listed, names = "\n".join(f"- {line}" for line in lines), " ".join(line[:2] for line in lines)
        raise ValueError(
            f"notebooks differ from their sources:\n{listed}\n`python code/make.py notebooks {names}` mends that"
        )
