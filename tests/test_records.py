"""Records are whole, kept, and found again."""

import json
import subprocess
from dataclasses import asdict, replace
from importlib.metadata import version

import pytest

import files
from experiments.settings import Settings
from publish.result_files import KEPT_SCALES
from runs import records
from tasks.catalogue import TASKS


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    return tmp_path


PUBLISHED = files.RESULTS / "runs"  # before a test puts another folder in its place
NAME = "table3/gpt2-mini/e2e-builtin/full"
RECORD = {"name": NAME, "scale": "quick", "seed": 3, "status": "finished"}


def test_a_records_path_names_scale_experiment_and_seed(results):
    path = records.write_record(RECORD)
    assert path == results / "runs" / "quick" / "table3--gpt2-mini--e2e-builtin--full--seed3.json"
    assert path == records.record_path(NAME, "quick", 3)
    assert records.read_record(path) == RECORD
    assert records.read_record(records.record_path(NAME, "quick", 4)) is None


def test_a_finished_record_is_never_overwritten():
    path = records.write_record(RECORD)
    with pytest.raises(FileExistsError, match="never overwritten"):
        records.write_record(RECORD | {"status": "other"})
    assert records.read_record(path)["status"] == "finished"


def test_unfinished_runs_are_kept_apart_numbered_and_counted():
    for _ in range(2):
        records.write_unfinished(RECORD | {"status": "failed"})
    records.write_unfinished(RECORD | {"status": "interrupted"})
    assert records.unfinished("quick", "failed") == 2
    assert records.unfinished("quick", "interrupted") == 1
    assert records.read_records("quick") == []


def test_the_note_of_an_unfinished_run_takes_a_new_number_and_no_other_ones_place(monkeypatch):
    first, second, third = (records.write_unfinished(RECORD | {"status": "failed"}) for _ in range(3))
    second.unlink()
    assert records.write_unfinished(RECORD | {"status": "interrupted"}).name.endswith("--seed3--4.json")
    monkeypatch.setattr("pathlib.Path.glob", lambda *_: [])  # as if other processes had just written theirs
    with pytest.raises(FileExistsError):
        records.write_unfinished(RECORD | {"status": "other"})
    assert [json.loads(path.read_text())["status"] for path in (first, third)] == ["failed", "failed"]


SETTINGS = Settings("mrpc", "minilm", "lora", learning_rate=1e-3, epochs=1, batch_size=8, targets=("query",))


def test_a_record_counts_for_the_settings_and_the_task_version_that_it_has():
    record = json.loads(json.dumps(RECORD | {"settings": asdict(SETTINGS), "task_version": TASKS["mrpc"].version}))
    assert records.is_declared(record, SETTINGS)
    assert not records.is_declared(record, replace(SETTINGS, rank=4))
    assert not records.is_declared(record | {"task_version": record["task_version"] - 1}, SETTINGS)


def test_a_setting_that_is_newer_than_the_record_had_its_default_then():
    older = {key: value for key, value in asdict(SETTINGS).items() if key != "rank"}
    record = RECORD | {"settings": older, "task_version": TASKS["mrpc"].version}
    assert records.is_declared(record, SETTINGS)
    assert not records.is_declared(record, replace(SETTINGS, rank=4))


def test_a_write_that_fails_leaves_nothing_behind(results, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        records.write_record(RECORD)
    assert list((results / "runs" / "quick").iterdir()) == []


def test_predictions_are_one_json_a_line_in_unicode():
    path = records.write_predictions("a/b/c", "quick", 0, [{"prediction": "Café Adriatic"}, {"prediction": ""}])
    lines = path.read_text(encoding="utf-8").splitlines()
    assert [json.loads(line)["prediction"] for line in lines] == ["Café Adriatic", ""]
    assert "Café" in lines[0]


def test_provenance_names_versions():
    assert records.provenance()["packages"]["torch"] == version("torch")


def test_provenance_names_the_commit_and_whether_the_code_differs_from_it(tmp_path, monkeypatch):
    def git(*words):
        author = ("-c", "user.name=a", "-c", "user.email=a@b")
        return subprocess.run(["git", *author, *words], cwd=tmp_path, check=True, capture_output=True, text=True).stdout

    def commit_and_dirty():
        return [records.provenance()[key] for key in ("git_commit", "git_dirty")]

    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setenv("GIT_CEILING_DIRECTORIES", str(tmp_path.parent))
    assert commit_and_dirty() == [None, None]
    git("init")
    for folder in ("code", "notes"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "file").write_text("as committed")
    git("add", ".")
    git("commit", "--message", "first")
    commit = git("rev-parse", "HEAD").strip()
    assert commit_and_dirty() == [commit, False]
    (tmp_path / "notes" / "file").write_text("changed")
    assert commit_and_dirty() == [commit, False]
    (tmp_path / "code" / "file").write_text("changed")
    assert commit_and_dirty() == [commit, True]


@pytest.mark.parametrize("scale", KEPT_SCALES)
def test_a_published_record_is_of_committed_code_or_older_than_that_rule(scale):
    published = [json.loads(path.read_text(encoding="utf-8")) for path in PUBLISHED.glob(f"{scale}/*.json")]
    uncommitted = {f"{r['name']} seed {r['seed']}": r["started"] for r in published if r["git_dirty"]}
    assert not {run for run, started in uncommitted.items() if started > "2026-11-24"}, "commit before you measure"
