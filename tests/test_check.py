"""`make check`: green on what `make summary` wrote, red after anything is changed by hand or a record is gone."""

import shutil

import pytest

import make_check
import make_summary
import paths
import records
from synthetic_records import write_e2e, write_glue

FULL, LORA = "table3/gpt2/full", "table3/gpt2/lora-r4"
PAGE = "# LoRA\n\n<!-- results -->\n<!-- /results -->\n\nThe end.\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A README, two records, and what `make summary` makes of them."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(paths, "ROOT", folder)
        patch.setattr(paths, "RESULTS", folder / "results")
        (folder / "README.md").write_text(PAGE, encoding="utf-8")
        write_e2e(FULL, 0, 0.62)
        write_e2e(LORA, 0, 0.61)
        make_summary.main()
    return folder


@pytest.fixture
def tree(made, tmp_path, monkeypatch):
    """A copy of it that a test may spoil."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    monkeypatch.setattr(paths, "ROOT", tmp_path)
    monkeypatch.setattr(paths, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(make_check, "stale", list)  # the documents, which tests/test_documents.py spoils
    return tmp_path


def replace_in(path, old, new):
    text = path.read_text(encoding="utf-8")
    assert old in text
    path.write_text(text.replace(old, new, 1), encoding="utf-8")


def test_what_was_just_made_is_green_and_making_it_again_changes_no_byte(tree):
    assert make_check.differences() == []
    before = {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()}
    assert {"summary.csv", "table3-cpu.md", "table3-cpu.csv", "table3-parameters-cpu.png", "README.md"} <= {
        path.name for path in before
    }
    make_summary.main()
    assert {path: path.read_bytes() for path in tree.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("file", ["summary.csv", "tables/table3-cpu.md", "tables/table3-cpu.csv"])
def test_a_number_changed_by_hand_is_red_and_named(tree, file):
    replace_in(tree / "results" / file, "61.00", "71.00")
    (found,) = make_check.differences()
    assert found.startswith(f"{file}, line ")
    assert "expected" in found and "61.00" in found and "71.00" in found


@pytest.mark.parametrize(("old", "new"), [("\n", "\r\n"), ("", "\n")])
def test_a_byte_that_does_not_show_is_red_too(tree, old, new):
    path = tree / "results" / "summary.csv"
    content = path.read_bytes()
    path.write_bytes(content.replace(old.encode(), new.encode(), 1) if old else content + new.encode())
    (found,) = make_check.differences()
    assert found.startswith("summary.csv, line ")


def test_a_deleted_record_is_red(tree):
    records.record_path(LORA, "cpu", 0).unlink()
    found = make_check.differences()
    assert any(line.startswith("summary.csv, line") for line in found)
    assert any(line.startswith("README.md, line") for line in found)


def test_a_record_that_is_not_in_the_tables_yet_is_red(tree):
    write_glue("table2/roberta-base/mrpc/full", 0, [0.8], [0.8])
    assert "tables/table2-cpu.md is missing" in make_check.differences()


def test_results_in_the_readme_that_are_changed_by_hand_are_red_and_what_is_around_them_is_free(tree):
    replace_in(tree / "README.md", "The end.", "Another end.")
    assert make_check.differences() == []
    replace_in(tree / "README.md", "61.00", "71.00")
    (found,) = make_check.differences()
    assert found.startswith("README.md, line")


def test_a_readme_without_markers_is_red_and_left_as_it_is(tree, monkeypatch):
    (tree / "README.md").write_text("# LoRA\n", encoding="utf-8")
    (found,) = make_check.differences()
    assert "expected the lines <!-- results --> and <!-- /results -->" in found
    monkeypatch.setattr(make_summary, "draw_text", lambda *_: None)
    with pytest.raises(SystemExit, match="error: the README is left as it is: expected the lines"):
        make_summary.main()
    assert (tree / "README.md").read_text(encoding="utf-8") == "# LoRA\n"


def test_a_file_that_is_missing_and_one_that_follows_from_no_record_are_red(tree, monkeypatch):
    (tree / "results/tables/table3-cpu.md").rename(tree / "results/tables/table4-cpu.md")
    assert make_check.differences() == [
        "tables/table3-cpu.md is missing",
        "tables/table4-cpu.md follows from no record",
    ]
    monkeypatch.setattr(make_summary, "draw_text", lambda *_: None)
    make_summary.main()
    assert make_check.differences() == []


def test_a_picture_of_other_numbers_is_red(tree):
    pictures = tree / "results" / "figures"
    (pictures / "table3-costs-cpu.pdf").write_bytes((pictures / "table3-parameters-cpu.pdf").read_bytes())
    assert make_check.differences() == ["figures/table3-costs-cpu.pdf is not drawn from the numbers beside it"]


def test_figures_of_quick_runs_are_nobodys_business(tree):
    (tree / "results/figures/table3-parameters-quick.png").write_bytes(b"")
    assert make_check.differences() == []


def test_the_command_ends_with_an_error_that_lists_what_differs(tree, monkeypatch, capsys):
    make_check.main()
    assert capsys.readouterr().out.endswith("tables, figures, README, report and poster are what the records give\n")
    (tree / "results" / "summary.csv").unlink()
    with pytest.raises(SystemExit, match=r"differs from what the records give:\n- summary.csv is missing\n`make summ"):
        make_check.main()
