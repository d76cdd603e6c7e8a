"""`make check`: green on what `make summary` wrote, red after anything is changed by hand or a record is gone."""

import re
import shutil
import subprocess
import sys

import pytest

import files
import make
from publish import check, figures, report, result_files
from publish.pages import PAGES
from runs import records
from synthetic_records import write_e2e, write_glue

FULL, LORA = "table3/gpt2-mini/full", "table3/gpt2-mini/lora-r4"


def bare(page):
    """The text of a page whose blocks are empty."""
    return "# LoRA\n\n" + "".join(f"<!-- {name} -->\n<!-- /{name} -->\n\n" for name in PAGES[page]) + "The end.\n"


def summary():
    """`make summary`, in this process."""
    make.make_summary(make.parser().parse_args(["summary"]))


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Pages, two records, and what `make summary` makes of them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "ROOT", folder)
        patch.setattr(files, "RESULTS", folder / "results")
        for page in PAGES:
            files.write_atomically(folder / page, bare(page))
        write_e2e(FULL, 0, 0.62)
        write_e2e(LORA, 0, 0.61)
        summary()
    return folder


@pytest.fixture
def tree(made, tmp_path, monkeypatch):
    """A copy of it that a test may spoil."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(check, "stale", list)  # the documents, which tests/test_documents.py spoils
    return tmp_path


def replace_in(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_what_was_just_made_is_green_and_making_it_again_changes_no_byte(tree):
    assert check.differences() == []
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert {"summary.csv", "table3-cpu.md", "table3-cpu.csv", "table3-parameters-cpu.png", "README.md"} <= {
        path.name for path in before
    }
    summary()
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("file", ["summary.csv", "tables/table3-cpu.md", "tables/table3-cpu.csv"])
def test_a_number_changed_by_hand_is_red_and_named(tree, file):
    replace_in(tree / "results" / file, "61.00", "71.00")
    (found,) = check.differences()
    assert found.startswith(f"{file}, line ")
    assert "expected" in found and "61.00" in found and "71.00" in found


@pytest.mark.parametrize(("old", "new"), [("\n", "\r\n"), ("", "\n")])
def test_a_byte_that_does_not_show_is_red_too(tree, old, new):
    path = tree / "results" / "summary.csv"
    content = path.read_bytes()
    path.write_bytes(content.replace(old.encode(), new.encode(), 1) if old else content + new.encode())
    (found,) = check.differences()
    assert found.startswith("summary.csv, line ")


def test_a_deleted_record_is_red(tree):
    records.record_path(LORA, "cpu", 0).unlink()
    found = check.differences()
    assert any(line.startswith("summary.csv, line") for line in found)
    assert any(line.startswith("README.md, line") for line in found)


def test_a_record_that_is_not_in_the_tables_yet_is_red(tree):
    write_glue("table2/minilm/mrpc/full", 0, [0.8], [0.8])
    assert "tables/table2-cpu.md is missing" in check.differences()


@pytest.mark.parametrize(
    ("page", "old", "new"),
    [
        ("README.md", "2 runs", "20 runs"), ("README.md", "Not measured yet", "Holds"),
        ("README.md", "begins.", "ends."),
        ("results/README.md", "not measured yet", "holds"), ("results/README.md", "61.00", "71.00"),
        ("results/costs.md", "| gpt2-large |", "| gpt-3 |"), ("results/costs.md", "not yet:", "0.5"),
        ("results/verification.md", "Not yet", "All held"),
    ],
)  # fmt: skip
def test_a_block_of_a_page_that_is_changed_by_hand_is_red_and_what_is_around_it_is_free(tree, page, old, new):
    replace_in(tree / page, "The end.", "Another end.")
    assert check.differences() == []
    replace_in(tree / page, old, new)
    (found,) = check.differences()
    assert found.startswith(f"{page}, line") and old in found and new in found


def test_a_page_without_markers_is_red_and_left_as_it_is(tree, monkeypatch):
    (tree / "README.md").write_text("# LoRA\n", encoding="utf-8")
    (found,) = check.differences()
    assert "expected the lines <!-- scope --> and <!-- /scope --> in README.md" in found
    monkeypatch.setattr(result_files, "draw_text", lambda *_: None)
    with pytest.raises(ValueError, match="expected the lines <!-- scope -->"):
        summary()
    assert (tree / "README.md").read_text(encoding="utf-8") == "# LoRA\n"


def test_a_file_that_is_missing_and_one_that_follows_from_no_record_are_red(tree, monkeypatch):
    (tree / "results/tables/table3-cpu.md").rename(tree / "results/tables/table4-cpu.md")
    assert check.differences() == [
        "tables/table3-cpu.md is missing",
        "tables/table4-cpu.md follows from no record",
    ]
    monkeypatch.setattr(result_files, "draw_text", lambda *_: None)
    summary()
    assert check.differences() == []


def test_a_picture_of_other_numbers_is_red(tree):
    pictures = tree / "results" / "figures"
    (pictures / "table3-costs-cpu.pdf").write_bytes((pictures / "table3-parameters-cpu.pdf").read_bytes())
    assert check.differences() == ["figures/table3-costs-cpu.pdf is not drawn from the numbers beside it"]


HARMS = {
    "half": lambda content: content[: len(content) // 2],
    "all but the end": lambda content: content[:-1],
    "a bit": lambda content: content[:3000] + bytes([content[3000] ^ 1]) + content[3001:],
}


@pytest.mark.parametrize("suffix", ["png", "pdf"])
@pytest.mark.parametrize("harm", HARMS.values(), ids=HARMS)
def test_a_picture_with_damaged_bytes_is_red(tree, suffix, harm):
    path = tree / f"results/figures/table3-parameters-cpu.{suffix}"
    path.write_bytes(harm(path.read_bytes()))
    (line,) = check.differences()
    assert line.startswith(f"figures/table3-parameters-cpu.{suffix} is ")


def test_a_picture_that_cannot_be_written_whole_is_as_it_was(tree, monkeypatch):
    def full(path, content):
        with path.open("wb") as file:
            file.write(content[: len(content) // 2])
        raise OSError(28, "No space left on device")

    before = {path: path.read_bytes() for path in (tree / "results/figures").iterdir()}
    write_e2e(LORA, 1, 0.62)
    monkeypatch.setattr("pathlib.Path.write_bytes", full)
    with pytest.raises(OSError, match="No space left"):
        figures.draw("parameters", "table3", "cpu")
    assert {path: path.read_bytes() for path in (tree / "results/figures").iterdir()} == before


@pytest.mark.parametrize("file", ["summary.csv", "tables/table3-cpu.md", "../results/README.md"])
def test_a_text_whose_bytes_are_no_text_any_more_is_red_and_named(tree, file):
    path = tree / "results" / file
    path.write_bytes(path.read_bytes().replace(b"61.00", b"\xff1.00", 1))
    (line,) = check.differences()
    assert line.startswith(f"{file.removeprefix('../')}, line ")


def test_a_damaged_record_is_red_named_and_counted_in_the_list_of_tables(tree, capsys):
    path = records.record_path(LORA, "cpu", 0)
    path.write_bytes(path.read_bytes()[:100])
    summary()
    damaged = f"runs/cpu/{path.name}"
    assert f"in no table: 1 ({damaged})" in (tree / "results/tables/README.md").read_text(encoding="utf-8")
    assert check.differences() == [f"{damaged} is damaged or a copy, and passed over"]
    assert f"passed over: {path} is damaged" in capsys.readouterr().err


def test_results_outside_the_project_are_compared_without_pages_and_documents(tree, tmp_path_factory, monkeypatch):
    monkeypatch.setattr(check, "stale", lambda: ["the documents are not asked"])
    with pytest.raises(ValueError, match="the documents are not asked"):
        check.check()
    outside = tmp_path_factory.mktemp("outside") / "results"
    shutil.move(tree / "results", outside)
    monkeypatch.setattr(files, "RESULTS", outside)
    page = (tree / "README.md").read_bytes()
    records.record_path(LORA, "cpu", 0).unlink()
    summary()
    assert check.check().endswith(f"pages, report and poster are not of {outside}")
    assert (tree / "README.md").read_bytes() == page  # it tells of the project's own results
    with pytest.raises(ValueError, match=f"expected results in {tree}, found {outside}"):
        report.write_documents()


def test_figures_of_quick_runs_are_nobodys_business(tree):
    (tree / "results/figures/table3-parameters-quick.png").write_bytes(b"")
    assert check.differences() == []


def test_the_command_ends_with_an_error_that_lists_what_differs(tree, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make.py", "check"])
    make.main()
    assert capsys.readouterr().out.endswith("tables, figures, pages, report and poster are what the records give\n")
    (tree / "results" / "summary.csv").unlink()
    with pytest.raises(SystemExit, match=r"differs from what the records give:\n- summary.csv is missing\n`make summ"):
        make.main()


def test_the_command_line_is_read_without_a_heavy_module():
    code = f"import sys; sys.path.insert(0, {str(files.ROOT / 'code')!r}); import make; make.parser()\n"
    code += "print({'torch', 'pandas', 'matplotlib', 'typst'} & sys.modules.keys())"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "set()\n"


@pytest.mark.parametrize("target", ["summary", "documents", "notebooks", "check", "gpu-check"])
def test_a_target_of_the_makefile_is_the_command_of_the_same_name(target):
    makefile = (files.ROOT / "Makefile").read_text(encoding="utf-8")
    (command,) = re.findall(rf"(?m)^{target}:.*\n\t.* code/make\.py (\S+)", makefile)
    assert command == target
    make.parser().parse_args([command])
