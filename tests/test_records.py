"""Records are whole, kept, and found again."""

import json

import pytest

import paths
import records


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(paths, "RESULTS", tmp_path)
    return tmp_path


RECORD = {"name": "table3/gpt2/full", "scale": "quick", "seed": 3, "status": "finished"}


def test_a_records_path_names_scale_experiment_and_seed(results):
    path = records.write_record(RECORD)
    assert path == results / "runs" / "quick" / "table3--gpt2--full--seed3.json"
    assert records.read_record("table3/gpt2/full", "quick", 3) == RECORD
    assert records.read_record("table3/gpt2/full", "quick", 4) is None


def test_a_finished_record_is_never_overwritten():
    records.write_record(RECORD)
    with pytest.raises(FileExistsError, match="never overwritten"):
        records.write_record(RECORD | {"status": "other"})
    assert records.read_record("table3/gpt2/full", "quick", 3)["status"] == "finished"


def test_unfinished_runs_are_kept_apart_numbered_and_counted():
    for _ in range(2):
        records.write_unfinished(RECORD | {"status": "failed"})
    records.write_unfinished(RECORD | {"status": "interrupted"})
    assert records.unfinished("quick", "failed") == 2
    assert records.unfinished("quick", "interrupted") == 1
    assert records.read_records("quick") == []


def test_a_write_that_fails_leaves_nothing_behind(results, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        records.write_record(RECORD)
    assert not list((results / "runs" / "quick").glob("*.json"))


def test_predictions_are_one_json_a_line_in_unicode():
    path = records.write_predictions("a/b/c", "quick", 0, [{"prediction": "Café Adriatic"}, {"prediction": ""}])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == ["Café Adriatic", ""]
    assert "Café" in lines[0]


def test_provenance_names_versions_and_commit():
    found = records.provenance()
    assert found["packages"]["torch"]
    assert found["git_dirty"] in (True, False, None)
