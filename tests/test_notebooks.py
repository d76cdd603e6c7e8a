"""Notebooks: sources and outputs agree, the set-up does on Colab what it says, and every cell works on every record."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import types
from functools import cache
from pathlib import Path

import nbformat
import pytest
from matplotlib.colors import to_hex

import colab
import files
import make
import notebook_tools
import synthetic_records
from experiments.catalogue import select
from experiments.settings import SCALES
from known_adapters import save_known_adapter
from models import load_model, load_tokenizer
from notebook_tools import Work
from publish import notebooks
from publish.token_picture import END, LEARNT, READ, token_picture
from runs import records
from tasks.catalogue import TASKS
from tasks.e2e.data import load_builtin

SOURCES = sorted(notebooks.NOTEBOOKS.glob("*.py"))
NAMES = [path.stem for path in SOURCES]
RUNNING = [name for name in NAMES if name not in notebooks.SHOWS_RECORDS]
SOURCE = "# %% [markdown]\n# # Title\n#\n# [![Open in Colab](x)](y)\n\n# %%\n# Set-up.\n\n# %%\n6 * 7\n"


def cells(source):
    return notebooks.texts(notebooks.notebook(source))


def cells_of(name):
    return cells((notebooks.NOTEBOOKS / f"{name}.py").read_text(encoding="utf-8"))


# The sources ------------------------------------------------------------------------------------------------------


def test_the_notebooks_of_the_project_are_there():
    assert NAMES == [
        "00_start_here", "01_lora_by_hand", "02_e2e_gpt2", "03_glue", "04_rank_and_weights", "05_rank_over_time",
        "06_pitfalls", "07_results", "08_costs_and_many_tasks", "09_inside_the_update",
    ]  # fmt: skip


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_begins_with_title_and_question_then_set_up_then_knobs(name):
    (title, text), (_, setup), (kind, knobs) = cells_of(name)[:3]
    assert title == "markdown" and re.match(r"# \S[^\n]*\n\n\*[^*]*\?\*", text)
    assert f"https://colab.research.google.com/github/{notebooks.REPOSITORY}/blob/" in text
    assert f"/notebooks/{name}.ipynb)" in text
    assert setup == cells_of("00_start_here")[1][1]
    assert kind == "code" and "keep_in(DRIVE)" in knobs
    assert set(re.findall(r"^[A-Z]+(?= = )", knobs, re.MULTILINE)) >= ({"SCALE", "SEEDS"} if name in RUNNING else set())


@pytest.mark.parametrize("name", NAMES)
def test_a_notebook_calls_into_the_code_and_defines_nothing(name):
    code = [text for kind, text in cells_of(name) if kind == "code"]
    assert not re.search(r"^\s*(class|def|async def) ", "\n".join(code), re.MULTILINE)
    assert max(len(text.splitlines()) for text in code) <= 21  # the set-up cell


@pytest.mark.parametrize("name", NAMES)
def test_what_a_notebook_links_to_is_there(name):
    prose = "\n".join(text for kind, text in cells_of(name) if kind == "markdown")
    for target in re.findall(r"\]\((?!http)([^)]+)\)", prose):
        place = notebooks.NOTEBOOKS / target.replace(".ipynb", ".py").replace("results/summary.csv", "results")
        assert place.exists(), target


def test_the_repository_of_all_badges_is_the_one_to_cite():
    citation = (files.ROOT / "CITATION.cff").read_text(encoding="utf-8")
    cited = re.findall(r"""(?m)^repository-code: ["']?https://github.com/([^"'\s]+)""", citation)
    assert cited in ([], [notebooks.REPOSITORY])
    readme = (files.ROOT / "README.md").read_text(encoding="utf-8")
    badges = re.findall(r"colab\.research\.google\.com/github/(\S+?)/blob/(\S+?)/", readme)
    assert badges == [(notebooks.REPOSITORY, notebooks.REVISION)] * len(NAMES)


def test_prose_and_code_are_read_from_the_percent_format():
    read = cells("# %% [markdown]\n# # Title\n#\n# - a  # b\n\n# %%\n# a comment\nx = 1\n\n\ny = 2\n")
    assert read == [("markdown", "# Title\n\n- a  # b"), ("code", "# a comment\nx = 1\n\n\ny = 2")]


@pytest.mark.parametrize("what", ["# [![Open in Colab](x)](y)", "# %%\n# Set-up."])
def test_a_source_without_badge_or_set_up_cell_is_an_error(what):
    with pytest.raises(ValueError, match=r"expected one (line|cell that begins) .* in one\.py, found 0; copy it"):
        notebooks.stamped(SOURCE.replace(what, ""), "one")


# The build --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("source", SOURCES, ids=lambda path: path.stem)
def test_a_notebook_has_the_cells_of_its_source_and_the_outputs_of_a_build(source):
    found = notebooks.difference(source)
    if source.stem in (
        *notebooks.SHOWS_RECORDS,
        *notebooks.SHOWS_TABLES,
        *notebooks.SHOWS_BENCHMARK,
    ):  # whether it shows today's records, `make check` says
        assert found is None or found.endswith("or made from other records")
    else:
        assert found is None


@pytest.fixture
def showing(tmp_path, monkeypatch):
    """Build a notebook whose one output is a note; what is said of it."""
    monkeypatch.setattr(notebooks, "provenance", lambda: {"git_dirty": False})
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    (tmp_path / "08_new.py").write_text(SOURCE, encoding="utf-8")

    def build(note, *words):
        def execute(book, results, checkpoints):
            data = {"text/markdown": note, "text/html": "<th></th><th>BLEU</th><td>60.1</td>"}
            book.cells[-1].outputs = [nbformat.v4.new_output("display_data", data=data)]

        monkeypatch.setattr(notebooks, "execute", execute)
        monkeypatch.setattr(sys, "argv", ["make.py", "notebooks", *words])
        make.main()

    return build


def test_a_notebook_that_shows_other_words_than_before_is_an_error_where_that_is_asked(showing):
    showing("scored by the course's metrics")
    showing("scored by the course's metrics", "--unchanged")
    showing("scored by NLTK")
    with pytest.raises(SystemExit, match="other words than the code gives now: 08_new; they are built anew"):
        showing("scored by the course's metrics", "--unchanged")


def test_no_notebook_is_built_from_code_that_is_not_committed(showing, monkeypatch):
    monkeypatch.setattr(notebooks, "provenance", lambda: {"git_dirty": True})
    with pytest.raises(SystemExit, match=r"something in code/ or data/ is not: commit it first"):
        showing("scored by NLTK")
    assert not list(notebooks.NOTEBOOKS.glob("*.ipynb"))


def test_a_copy_under_another_name_needs_no_build(built, monkeypatch):
    texts = {path: path.read_text(encoding="utf-8") for path in (built, built.with_suffix(".ipynb"))}
    for path, text in texts.items():
        path.write_text(text.replace(notebooks.REPOSITORY, "you/your-copy"), encoding="utf-8")
    monkeypatch.setattr(notebooks, "REPOSITORY", "you/your-copy")
    assert notebooks.difference(built) is None


@pytest.mark.parametrize("name", NAMES)
def test_what_is_committed_tells_nothing_of_the_machine_it_was_built_on(name):
    book = nbformat.read(notebooks.NOTEBOOKS / f"{name}.ipynb", as_version=4)
    for cell in book.cells:
        assert cell.metadata == {}
        for output in cell.get("outputs", []):
            output.get("data", {}).pop("image/png", None)
            assert not re.search(r"/(home|root|tmp|work|Users|content)/", json.dumps(output))
    counts = [cell.execution_count for cell in book.cells if cell.cell_type == "code"]
    assert counts == list(range(1, len(counts) + 1))
    outputs = [output for cell in book.cells for output in cell.get("outputs", [])]
    assert all(output.output_type != "error" and output.get("name") != "stderr" for output in outputs)


@pytest.fixture
def built(tmp_path, monkeypatch):
    """A source and its notebook, as a build leaves them; the kernel is stood in for by fixed outputs."""

    def execute(book, results, checkpoints):
        for number, cell in enumerate((cell for cell in book.cells if cell.cell_type == "code"), 1):
            cell.execution_count = number
            cell.outputs = [nbformat.v4.new_output("stream", name="stdout", text="one\ntwo\n")]

    monkeypatch.setattr(notebooks, "execute", execute)
    monkeypatch.setattr(notebooks, "NOTEBOOKS", tmp_path)
    source = tmp_path / "08_new.py"
    source.write_text(SOURCE, encoding="utf-8")
    notebooks.build(source, source.with_suffix(".ipynb"))
    return source


def edit(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new), encoding="utf-8")


def test_a_build_agrees_with_its_source_and_building_again_changes_no_byte(built):
    assert notebooks.difference(built) is None
    before = [path.read_bytes() for path in (built, built.with_suffix(".ipynb"))]
    notebooks.build(built, built.with_suffix(".ipynb"))
    assert [path.read_bytes() for path in (built, built.with_suffix(".ipynb"))] == before


@pytest.mark.parametrize(
    ("suffix", "old", "new", "message"),
    [
        (".py", "6 * 7", "6 * 8", "08_new.ipynb: cell 3 is not that of 08_new.py"),
        (".ipynb", "6 * 7", "6 * 8", "08_new.ipynb: cell 3 is not that of 08_new.py"),
        (".py", "6 * 7\n", "6 * 7\n\n# %%\n1\n", "08_new.ipynb: 3 cells, 4 in 08_new.py"),
        (".ipynb", "two", "three", "08_new.ipynb: its outputs are not those of a build"),
        (".py", "--branch=", "--branch=x", "08_new.py: the badge or the set-up cell is not that of code/publish/"),
        (".py", "08_new.ipynb", "09.ipynb", "08_new.py: the badge or the set-up cell is not that of code/publish/"),
    ],
)
def test_an_edit_by_hand_of_either_file_is_red(built, suffix, old, new, message):
    edit(built.with_suffix(suffix), old, new)
    assert notebooks.difference(built).startswith(message)


@pytest.mark.parametrize(
    ("shows", "what", "text"),
    [("SHOWS_RECORDS", ("08_new",), "summary.csv"), ("SHOWS_TABLES", {"08_new": ("table3",)}, "tables/table3-cpu.md")],
)
def test_a_notebook_that_shows_records_is_red_when_they_change(built, monkeypatch, shows, what, text):
    monkeypatch.setattr(notebooks, shows, what)
    monkeypatch.setattr(notebooks.result_files, "result_texts", lambda: {text: "one", "tables/table33-cpu.md": "a"})
    notebooks.build(built, built.with_suffix(".ipynb"))
    assert notebooks.difference(built) is None
    monkeypatch.setattr(notebooks.result_files, "result_texts", lambda: {text: "one", "tables/table33-cpu.md": "b"})
    assert notebooks.difference(built) is None
    monkeypatch.setattr(notebooks.result_files, "result_texts", lambda: {text: "another"})
    assert notebooks.difference(built).endswith("not those of a build, or made from other records")


def test_a_notebook_that_shows_what_was_measured_is_red_when_that_is_measured_anew(built, monkeypatch):
    monkeypatch.setattr(notebooks, "SHOWS_BENCHMARK", ("08_new",))
    blocks = {"efficiency": lambda: "not yet", "table1": lambda: "+1%", "speed": lambda: "1.00", "costs": lambda: "5 h"}
    monkeypatch.setattr(notebooks.pages, "COSTS", blocks)
    notebooks.build(built, built.with_suffix(".ipynb"))
    monkeypatch.setitem(blocks, "costs", lambda: "6 h")
    assert notebooks.difference(built) is None
    monkeypatch.setitem(blocks, "table1", lambda: "+2%")
    assert notebooks.difference(built).endswith("not those of a build, or made from other records")


def test_the_check_names_every_difference_and_a_missing_notebook(built, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make.py", "notebooks", "--check"])
    make.main()
    assert capsys.readouterr().out == "1 notebooks agree with their sources\n"
    built.with_suffix(".ipynb").unlink()
    with pytest.raises(SystemExit, match=r"notebooks differ from their sources:\n- 08_new\.ipynb is missing"):
        make.main()


def test_notebooks_are_chosen_by_how_their_names_begin(built):
    assert notebooks.chosen([]) == notebooks.chosen(["08"]) == [built]
    with pytest.raises(ValueError, match="no notebook is called '99'; they are 08_new"):
        notebooks.chosen(["08", "99"])


def test_progress_bars_and_warnings_do_not_last_and_printed_text_is_one_piece():
    new = nbformat.v4.new_output
    outputs = [
        new("stream", name="stdout", text="a"),
        new("stream", name="stderr", text="50%"),
        new("stream", name="stdout", text="b"),
        new("display_data", data={"text/html": "<progress value='3'>"}),
        new("display_data", data={"application/vnd.jupyter.widget-view+json": {"model_id": "1"}, "text/plain": "0%"}),
        new("execute_result", data={"text/html": "<table>"}),
    ]
    kept = notebooks._lasting(outputs)
    assert [(output["output_type"], output.get("text")) for output in kept] == [
        ("stream", "ab"),
        ("execute_result", None),
    ]


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES, ids=NAMES)
def test_a_notebook_runs_from_top_to_bottom_at_quick_scale_without_a_network(source, tmp_path):
    copy = tmp_path / source.name
    copy.write_bytes(source.read_bytes())
    notebooks.build(copy, copy.with_suffix(".ipynb"))
    assert notebooks.difference(copy) is None


# The set-up cell --------------------------------------------------------------------------------------------------

AS_COLAB = """
import sys, types
sys.modules["google"], sys.modules["google.colab"] = types.ModuleType("google"), types.ModuleType("google.colab")
exec(open("setup.py").read())
import files
print(files.ROOT)
"""


def git(folder, *words):
    identity = ("-c", "user.name=a", "-c", "user.email=a@b")
    subprocess.run(["git", "-C", str(folder), *identity, *words], check=True, capture_output=True)


@pytest.fixture
def published(tmp_path):
    """A repository to clone, whose branch `main` is not the one it has checked out; and a folder to clone it into."""
    repository, here = tmp_path / "published", tmp_path / "content"
    (repository / "code").mkdir(parents=True)
    here.mkdir()
    for name in ("files", "colab"):
        (repository / "code" / f"{name}.py").write_bytes((files.ROOT / "code" / f"{name}.py").read_bytes())
    (repository / "requirements.txt").write_text("leaflet>=1\nipython>=99\n", encoding="utf-8")
    git(repository, "init", "--initial-branch=main")
    git(repository, "add", ".")
    git(repository, "commit", "-m", "the one to clone")
    git(repository, "checkout", "-b", "later")
    (repository / "code" / "files.py").write_text("raise RuntimeError('another revision')\n", encoding="utf-8")
    git(repository, "commit", "-a", "-m", "another")
    (here / "setup.py").write_text(cells_of("00_start_here")[1][1], encoding="utf-8")
    return repository, here


def as_colab(python, published, **environment):
    repository, here = published
    known = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "PIP_", "VIRTUAL"))}
    known |= {"LORA_REPOSITORY": repository.as_uri(), "PIP_NO_INDEX": "1"} | environment
    command = [str(python), "-c", AS_COLAB]
    return subprocess.run(command, cwd=here, env=known, capture_output=True, text=True, check=False)


def test_on_colab_the_set_up_clones_the_revision_once_and_puts_its_code_on_the_path(published):
    repository, here = published
    git(repository, "checkout", "main")
    (repository / "code" / "colab.py").write_text("def install_missing():\n    print('installed')\n", encoding="utf-8")
    git(repository, "commit", "-a", "-m", "stand-in for pip")
    git(repository, "checkout", "later")
    for _ in range(2):
        done = as_colab(sys.executable, published)
        assert (done.stdout.splitlines(), done.returncode) == (["installed", str(here / "lora")], 0), done.stderr


def test_elsewhere_the_set_up_finds_the_code_from_any_folder_of_the_project_and_starts_nothing(monkeypatch):
    monkeypatch.setattr(subprocess, "run", lambda *_, **__: pytest.fail("started a process"))
    for folder in (files.ROOT, files.ROOT / "notebooks", files.ROOT / "results" / "runs"):
        monkeypatch.chdir(folder)
        monkeypatch.setattr(sys, "path", [])
        exec(cells_of("00_start_here")[1][1], {})
        assert sys.path == [str(files.ROOT / "code")]


@pytest.mark.slow
def test_on_colab_what_is_missing_is_installed_and_torch_stays_as_it_is(published, tmp_path):
    """A fresh environment with a torch of its own, and an index with a newer one and a package that is missing."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "fresh")], check=True)
    python = tmp_path / "fresh" / "bin" / "python"
    where = "import sysconfig; print(sysconfig.get_path('purelib'))"
    installed = Path(subprocess.run([python, "-c", where], capture_output=True, text=True, check=True).stdout.strip())
    index = tmp_path / "index"
    index.mkdir()
    write_wheel(index, "leaflet", "1.5")
    write_wheel(index, "torch", "3.0")
    metadata = installed / "torch-2.9.0+cu128.dist-info"
    metadata.mkdir()
    (metadata / "METADATA").write_text("Metadata-Version: 2.1\nName: torch\nVersion: 2.9.0+cu128\n", encoding="utf-8")
    repository, here = published
    git(repository, "checkout", "main")
    (repository / "requirements.txt").write_text("torch>=2.6,<4\nleaflet>=1\nipython>=99\n", encoding="utf-8")
    git(repository, "commit", "-a", "-m", "with torch")
    done = as_colab(python, published, PIP_FIND_LINKS=str(index))
    assert (done.stdout.strip(), done.returncode) == (str(here / "lora"), 0), done.stderr
    subprocess.run([python, "-c", "import leaflet"], check=True)
    assert sorted(path.name for path in installed.glob("torch*")) == ["torch-2.9.0+cu128.dist-info"]

    (here / "lora" / "requirements.txt").write_text("torch>=2.10\n", encoding="utf-8")  # impossible with this one
    done = as_colab(python, published, PIP_FIND_LINKS=str(index))
    assert "CalledProcessError" in done.stderr
    assert sorted(path.name for path in installed.glob("torch*")) == ["torch-2.9.0+cu128.dist-info"]


def write_wheel(folder, name, version):
    import zipfile

    facts = f"{name}-{version}.dist-info"
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        wheel.writestr(f"{name}.py", "")
        wheel.writestr(f"{facts}/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{facts}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{facts}/RECORD", f"{name}.py,,\n{facts}/METADATA,,\n{facts}/WHEEL,,\n{facts}/RECORD,,\n")


def test_results_are_kept_in_the_folder_beside_the_records_that_are_there(tmp_path):
    """In a process of its own: modules look their folders up when they are imported."""
    root, drive = tmp_path / "lora", tmp_path / "drive"
    known = {"results/runs/cpu/a--seed0.json": "ours", "results/runs/cpu/b--seed0.json": "ours"}
    known |= {"results/predictions/cpu/a--seed0.jsonl": "texts", "results/summary.csv": "made anew there"}
    known |= {"results/rescored/cpu/a--seed0.json": "newer", "results/gpu/a-gpu.json": "steps"}
    for name, text in known.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    (drive / "results/runs/cpu").mkdir(parents=True)
    (drive / "results/runs/cpu/b--seed0.json").write_text("kept")
    program = (
        f"import sys, pathlib; sys.path.insert(0, {str(files.ROOT / 'code')!r}); import colab\n"
        f"colab.ROOT = pathlib.Path({str(root)!r})\n"
        f"for _ in range(2):\n    colab.keep_in({str(drive)!r})\n    import files\n"
        "print(files.RESULTS, files.CHECKPOINTS)\ncolab.keep_in(None)\n"
        f"colab.keep_in({str(tmp_path / 'another')!r})\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.stdout.split() == [str(drive / "results"), str(drive / "checkpoints")], done.stderr
    assert "restart the kernel and run the notebook from its first cell" in done.stderr
    assert (drive / "results/runs/cpu/a--seed0.json").read_text() == "ours"
    assert (drive / "results/runs/cpu/b--seed0.json").read_text() == "kept"
    assert (drive / "results/predictions/cpu/a--seed0.jsonl").read_text() == "texts"
    assert (drive / "results/rescored/cpu/a--seed0.json").read_text() == "newer"
    assert (drive / "results/gpu/a-gpu.json").read_text() == "steps"
    assert not (drive / "results/summary.csv").exists()


def test_a_copy_that_is_interrupted_leaves_no_half_of_a_record(tmp_path, monkeypatch):
    (record := tmp_path / "lora/results/runs/cpu/a--seed0.json").parent.mkdir(parents=True)
    record.write_text("whole")

    def interrupted(path, content):
        write(path, content[:3])
        raise KeyboardInterrupt

    write = Path.write_bytes
    monkeypatch.setattr(colab, "ROOT", tmp_path / "lora")
    monkeypatch.setattr(Path, "write_bytes", interrupted)
    monkeypatch.delitem(sys.modules, "files")
    for name in ("LORA_RESULTS_DIR", "LORA_CHECKPOINT_DIR"):
        monkeypatch.setenv(name, "")
    with pytest.raises(KeyboardInterrupt):
        colab.keep_in(tmp_path / "drive")
    monkeypatch.undo()
    assert not list((tmp_path / "drive/results/runs/cpu").iterdir())


def test_a_folder_on_drive_is_mounted_first(tmp_path, monkeypatch):
    mounted = []
    drive = types.SimpleNamespace(mount=mounted.append)
    monkeypatch.setitem(sys.modules, "google.colab", types.SimpleNamespace(drive=drive))
    monkeypatch.setattr(colab, "DRIVE", tmp_path)
    monkeypatch.setattr(colab, "find_spec", lambda name: name == "google.colab")
    monkeypatch.setattr(colab, "ROOT", tmp_path)
    monkeypatch.delitem(sys.modules, "files")
    for name in ("LORA_RESULTS_DIR", "LORA_CHECKPOINT_DIR"):
        monkeypatch.setenv(name, "")
    colab.keep_in(tmp_path / "MyDrive" / "lora")
    assert mounted == [str(tmp_path)]


@pytest.mark.parametrize(
    ("gpu", "bfloat16", "scale", "why"),
    [(True, True, "paper", "A100"), (True, False, "cpu", "which is for an A100"), (False, False, "quick", "no GPU")],
)
def test_the_scale_fits_the_device_and_is_said_with_its_reason(monkeypatch, capsys, gpu, bfloat16, scale, why):
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: "A100" if bfloat16 else "Tesla T4")
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: bfloat16 or including_emulation)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: types.SimpleNamespace(total_memory=40 * 2**30))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 0))
    assert colab.suitable_scale() == scale
    said = capsys.readouterr().out
    assert f"scale {scale}: " in said and why in said and "torch" in said and "Warning" not in said


@pytest.mark.parametrize(("name", "gib"), [("NVIDIA L4", 22), ("NVIDIA L40S", 44)])
def test_a_gpu_below_an_a100_is_used_with_a_warning(monkeypatch, capsys, name, gib):
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr("torch.cuda.get_device_name", lambda: name)
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda including_emulation: True)
    monkeypatch.setattr("torch.cuda.get_device_properties", lambda _: types.SimpleNamespace(total_memory=gib * 2**30))
    monkeypatch.setattr("torch.cuda.get_device_capability", lambda: (8, 9))
    assert colab.suitable_scale() == "paper"
    assert f"{name}, {gib} GiB. Warning: less than an A100" in capsys.readouterr().out


gpt2_mini = cache(lambda: load_model("gpt2-mini"))


# Work -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def recorded(tmp_path, monkeypatch):
    """Runs are stood in for by records that say the same for all; what is shown is collected. Gives the runs done."""
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")
    monkeypatch.setattr(colab, "suitable_scale", lambda: "quick")
    done = []

    def do(run):
        done.append(str(run))
        name, scale, seed = run.experiment.name, run.experiment.scale, run.seed
        adapter = run.adapter
        settings = run.experiment.settings
        if settings.method == "lora" and settings.model == "gpt2-mini":  # whose adapters some notebooks read
            save_known_adapter(gpt2_mini(), run)
        else:
            adapter.mkdir(parents=True)
            (adapter / "adapter_model.safetensors").write_bytes(b"1")
        if TASKS[settings.task].outputs:
            return synthetic_records.write_glue(name, seed, [0.7, 0.8], [0.7, 0.75])
        texts = [{"mr": f"name[{i}], area[riverside]", "prediction": f"{i} by {run.experiment.row}"} for i in range(5)]
        records.write_predictions(name, scale, seed, texts)
        return synthetic_records.write_e2e(name, seed, 0.61)

    monkeypatch.setattr(notebook_tools, "do", do)
    return done


@pytest.fixture
def shown(monkeypatch):
    found = []
    monkeypatch.setattr(notebook_tools, "display", found.append)
    return found


ROWS = ["e2e-builtin/full", "e2e-builtin/lora-r4"]
FULL, LORA = "table3/gpt2-mini/e2e-builtin/full", "table3/gpt2-mini/e2e-builtin/lora-r4"


def test_what_is_recorded_costs_nothing_and_is_not_run_again(recorded, shown, capsys):
    first, both = Work("table3", "quick", [0], ROWS[:1]), Work("table3", "quick", [0], ROWS)
    first.run()
    assert recorded == [f"{FULL} seed 0"]
    assert f"{FULL} seed 0: BLEU 61.00" in capsys.readouterr().out
    both.cost()
    assert capsys.readouterr().out.startswith("runs at scale quick: 2, recorded already: 1; the others take about ")
    (cost,) = shown
    assert list(cost.index) == [LORA]
    assert cost.loc[LORA, ["trained", "of"]].to_list() == ["16,384", "5,338,624"]
    both.run()
    both.run()
    assert recorded == [f"{FULL} seed 0", f"{LORA} seed 0"]
    shown.clear()
    both.cost()
    assert capsys.readouterr().out.endswith("runs at scale quick: 2, recorded already: 2: nothing to run\n")
    assert shown == []


def test_a_run_that_is_stopped_leaves_the_others_and_is_done_when_asked_again(recorded, monkeypatch):
    work, do = Work("table3", "quick", [0], ROWS), notebook_tools.do

    def stopped(run):
        if run.experiment.row == "lora-r4":
            raise KeyboardInterrupt
        return do(run)

    monkeypatch.setattr(notebook_tools, "do", stopped)
    with pytest.raises(KeyboardInterrupt):
        work.run()
    monkeypatch.setattr(notebook_tools, "do", do)
    work.run()
    assert recorded == [f"{FULL} seed 0", f"{LORA} seed 0"]


def test_what_takes_more_than_an_hour_is_begun_when_it_is_confirmed(recorded, capsys):
    work = Work("table3", "cpu", [0], ["smollm2-135m/full", "smollm2-135m/lora-r4"])
    work.run()
    assert not recorded and "2 runs take about " in (said := capsys.readouterr().out) and "Set CONFIRM = True" in said
    work.run(confirm=True)
    assert len(recorded) == 2


def test_what_is_recorded_of_a_table_is_shown_beside_a_notebooks_own_runs(recorded, shown):
    notebook_tools.show_table("table3", "cpu", "differences")
    assert [piece.data for piece in shown] == ["Nothing of Table 3: E2E is recorded at scale `cpu` yet."]
    shown.clear()
    for row, bleu in (("full", 0.6), ("lora-r4", 0.5)):
        synthetic_records.write_e2e(f"table3/gpt2-mini/{row}", 0, bleu)
    notebook_tools.show_table("table3", "cpu", "differences")
    assert list(shown[1].index) == ["table3/gpt2-mini/full", LORA.replace("/e2e-builtin", "")]
    assert shown[-1].data.startswith(b"\x89PNG")


def test_a_notebook_ends_with_what_the_records_say_of_a_claim(recorded, shown):
    notebook_tools.conclude("cpu", "e2e-matches")
    said = "- On E2E, LoRA r=4 is no worse than full fine-tuning. **Not measured yet** on `smollm2-135m`."
    assert shown.pop().data == said
    for row, bleu in (("full", 0.6), ("lora-r4", 0.5)):
        synthetic_records.write_e2e(f"table3/smollm2-135m/{row}", 0, bleu)
    notebook_tools.conclude("cpu", "e2e-matches", "few-parameters")
    first, second = shown.pop().data.splitlines()
    assert first.endswith("**Does not hold** on `smollm2-135m`. LoRA r=4 minus full: -10.00 BLEU; 1 seed.")
    assert second.startswith("- On E2E, LoRA r=4 on query and value trains less than one percent of the parameters. **")
    with pytest.raises(KeyError, match="no-such-claim"):
        notebook_tools.conclude("cpu", "no-such-claim")


def test_a_picture_of_tokens_has_the_loss_on_the_reference_and_the_end_alone():
    example, tokenizer = load_builtin("train")[0], load_tokenizer("gpt2-mini")
    drawn = token_picture(example, tokenizer).axes[0].texts
    colours = [to_hex(text.get_bbox_patch().get_facecolor()) for text in drawn]
    learnt = len(tokenizer(f" {example.reference}")["input_ids"])
    assert colours == [READ] * (len(drawn) - learnt - 1) + [LEARNT] * learnt + [END]
    assert drawn[-1].get_text() == tokenizer.eos_token


def test_a_notebook_that_trains_at_the_papers_scale_asks_for_a_gpu():
    asking = [name for name in NAMES if "accelerator" in notebooks.metadata(name)]
    training = [name for name in NAMES if any("Work(" in text for kind, text in cells_of(name) if kind == "code")]
    assert asking == [name for name in training if "suitable_scale" in cells_of(name)[2][1]]


def test_the_table_has_ours_beside_the_papers_and_only_the_chosen_rows(recorded, shown):
    work = Work("table3", "quick", [0], ROWS)
    work.run()
    work.show()
    sheet = shown[1]
    assert list(sheet.index) == [FULL, LORA]
    assert sheet.loc[LORA, "BLEU"] == "61.00" and "paper BLEU" not in sheet  # none stands beside built-in data
    said = "\n".join(piece.data for piece in shown if hasattr(piece, "data"))
    assert "Scale `quick`: built-in data" in said
    assert notebook_tools.COSTS not in said  # of seconds on some machine


def test_costs_are_shown_where_they_mean_something(recorded, shown):
    synthetic_records.write_e2e("table3/gpt2-mini/full", 0, 0.6)
    Work("table3", "cpu", [0], ["gpt2-mini/full", "gpt2-mini/lora-r4"]).show()
    (sheet,) = [piece for piece in shown if "paper BLEU" in getattr(piece, "columns", ())]
    assert sheet.loc["table3/gpt2-mini/full", "paper BLEU"] == "68.2"
    assert f"**{notebook_tools.COSTS}**, scale `cpu`" in [piece.data for piece in shown if hasattr(piece, "data")]


def test_rows_are_a_list_and_seeds_may_come_one_by_one(recorded):
    with pytest.raises(ValueError, match="rows must be a list of names, found 'lora-r4'"):
        Work("table3", "quick", [0], "lora-r4")
    work = Work("table3", "quick", (seed for seed in (0, 1)), ROWS[:1])
    work.run()
    assert [run.seed for run in work.runs] == [0, 1] and len(recorded) == 2


def test_a_record_of_other_data_does_not_answer_for_those_at_hand(recorded, monkeypatch):
    work = Work("table3", "quick", [0], ROWS[:1])
    work.run()
    monkeypatch.setattr(notebook_tools, "of_other_data", lambda run: "recorded with other data (train a, not b)")
    with pytest.raises(ValueError, match=r"full seed 0: recorded with other data \(train a, not b\)"):
        work.run()


def test_texts_stand_side_by_side(recorded, shown):
    work = Work("table3", "quick", [0], ROWS)
    work.run()
    work.texts(2)
    (sheet,) = shown
    assert sheet.to_dict("index") == {
        "name[0], area[riverside]": {"full": "0 by full", "lora-r4": "0 by lora-r4"},
        "name[1], area[riverside]": {"full": "1 by full", "lora-r4": "1 by lora-r4"},
    }


def test_answers_on_glue_stand_beside_the_right_one_by_their_names(recorded, shown):
    for row, answer in (("full", 1), ("lora-r8", 0)):
        name = f"table2/minilm/mrpc/{row}"
        synthetic_records.write_glue(name, 0, [0.7], [0.7])
        answers = [{"texts": ["It rains.", "Rain falls."], "label": 1, "prediction": answer}]
        records.write_predictions(name, "cpu", 0, answers)
    Work("table2", "cpu", [0], ["minilm/mrpc/full", "minilm/mrpc/lora-r8"]).texts(4)
    assert shown.pop().reset_index().to_dict("records") == [{
        "sentence1": "It rains.", "sentence2": "Rain falls.", "right answer": "equivalent",
        "full": "equivalent", "lora-r8": "not_equivalent",
    }]  # fmt: skip


def test_a_figure_is_shown_and_leaves_no_file_among_the_results(recorded, shown):
    work = Work("table3", "quick", [0], ROWS)
    work.figure("parameters")
    assert "Nothing is recorded at scale `quick` that the figure *parameters* could show." in shown.pop().data
    work.run()
    work.figure("parameters")
    assert shown.pop().data.startswith(b"\x89PNG")
    assert not (files.RESULTS / "figures").exists()


def test_all_that_is_recorded_is_shown_and_holes_are_counted(recorded, shown):
    notebook_tools.show_recorded("cpu")
    assert [piece.data for piece in shown] == ["Nothing is recorded at scale `cpu` yet."]
    shown.clear()
    synthetic_records.write_e2e("table3/gpt2-mini/full", 0, 0.6)
    synthetic_records.write_glue("table2/minilm/mrpc/full", 0, [0.8], [0.8])
    notebook_tools.show_recorded("cpu")
    said = "\n".join(piece.data for piece in shown if hasattr(piece, "data") and isinstance(piece.data, str))
    assert re.search(r"## Table 3: E2E\n\n1 of \d+ rows are recorded at scale `cpu`\.", said)
    assert re.search(r"## Table 2: GLUE\n\n1 of \d+ rows are recorded at scale `cpu`\.", said)
    assert list(shown[2].index) == ["table3/gpt2-mini/full"]


@pytest.mark.parametrize("name", NAMES)
def test_every_cell_of_a_notebook_works_on_the_records_of_its_runs(name, recorded, shown, monkeypatch):
    monkeypatch.setattr(sys, "path", list(sys.path))
    names: dict = {}
    for kind, text in cells_of(name):
        if kind == "code":
            exec(text, names)
    assert bool(recorded) == any(re.search(r"\.run\((CONFIRM)?\)", text) for _, text in cells_of(name))
    assert len(recorded) == len(set(recorded))
    assert {run.experiment.scale for work in names.values() if isinstance(work, Work) for run in work.runs} <= {"quick"}
    said = [piece.data for piece in shown if isinstance(getattr(piece, "data", None), str)]
    assert not any("could show" in text for text in said)  # every figure has something of these runs


TABLES = pytest.mark.parametrize(("notebook", "table"), [("02_e2e_gpt2", "table3"), ("03_glue", "table2")])


@TABLES
def test_the_rows_that_a_text_names_are_there(notebook, table):
    rows = re.findall(r'`"([\w./-]+)"`', (files.ROOT / "notebooks" / f"{notebook}.py").read_text(encoding="utf-8"))
    assert len(rows) >= 3
    assert len(select(table, "paper", rows)) == len(rows)


@TABLES
@pytest.mark.parametrize("scale", SCALES)
def test_the_rows_of_the_knobs_are_there_at_every_scale(notebook, table, scale):
    (listed,) = re.findall(rf'"{scale}": \[(.*)\]', cells_of(notebook)[2][1])
    rows = re.findall(r'"([^"]+)"', listed)
    assert [experiment.row for experiment in select(table, scale, rows)] == [row.split("/")[-1] for row in rows]
