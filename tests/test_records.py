"""Records are whole, kept, and found again."""

import json
import os
import runpy
import shutil
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


@pytest.mark.parametrize(
    ("variable", "name"), [("LORA_RESULTS_DIR", "RESULTS"), ("LORA_CHECKPOINT_DIR", "CHECKPOINTS")]
)
def test_an_empty_variable_names_no_folder(monkeypatch, tmp_path, variable, name):
    monkeypatch.chdir(tmp_path)
    for value, expected in (("", files.ROOT / name.lower()), ("mine", tmp_path / "mine")):
        monkeypatch.setenv(variable, value)
        assert runpy.run_path(files.__file__)[name] == expected


def test_results_are_the_projects_own_wherever_a_path_leads(monkeypatch, tmp_path):
    monkeypatch.chdir(files.ROOT)
    (tmp_path / "link").symlink_to(files.ROOT / "results")
    for value, own in (("", True), ("../elsewhere/results", False), (tmp_path / "link", True), (tmp_path, False)):
        monkeypatch.setenv("LORA_RESULTS_DIR", str(value))
        assert runpy.run_path(files.__file__)["results_are_own"]() is own


def test_a_path_that_no_unicode_can_write_is_noted_as_it_is(results):
    note = RECORD | {"status": "failed", "error": "no folder /tmp/\udcff"}
    assert files.read_json(records.write_unfinished(note))["error"] == note["error"]


def test_a_write_that_fails_leaves_nothing_behind(results, monkeypatch):
    def broken(*_):
        raise OSError("disk full")

    monkeypatch.setattr("os.replace", broken)
    with pytest.raises(OSError, match="disk full"):
        records.write_record(RECORD)
    assert list((results / "runs" / "quick").iterdir()) == []


def test_what_a_killed_process_left_of_a_file_is_removed_when_the_run_writes_it_again(results):
    paths = (
        records.record_path(NAME, "quick", 3),
        records.predictions_path(NAME, "quick", 3),
        records.record_path(NAME, "quick", 3).parent / "unfinished" / f"{records.run_id(NAME, 3)}--1.json",
    )
    for path in paths:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.with_name(f"{path.name}.4711.tmp").write_text('{"half')
    records.write_unfinished(RECORD | {"status": "failed"})
    records.write_predictions(NAME, "quick", 3, [{"prediction": "a"}])
    records.write_record(RECORD)
    assert {path for path in results.rglob("*") if path.is_file()} == set(paths)


def older(name=NAME, scale="quick", seed=3, **changes):
    """Write a record as it was before digests; return its path."""
    record = RECORD | {"name": name, "scale": scale, "seed": seed, "started": "2026-11-22T10:00:00+00:00"}
    record |= {"settings": asdict(SETTINGS), "task_version": 1, "device": "cpu", "threads": 1, "training_seconds": 1.0}
    record |= {"parameters": {"trainable": 1}, "data_fingerprint": {}, "history": [], "scores": {"accuracy": 0.5}}
    path = records.record_path(name, scale, seed)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(record | changes), encoding="utf-8")
    return path


def with_digest():
    return records.write_record(RECORD | {"scores": {"BLEU": 0.6093}, "started": "today"})


def test_a_record_that_is_older_than_digests_counts_as_it_is(capsys):
    path = older()
    assert records.read_record(path)["scores"] == {"accuracy": 0.5}
    assert records.damage(path) is None and records.damaged("quick") == []
    assert capsys.readouterr().err == ""


DAMAGES = {
    "cut off": lambda text: text[: len(text) // 2],
    "empty": lambda text: "",
    "a list": lambda text: "[]",
    "no JSON": lambda text: "\0" * len(text),
    "nested without end": lambda text: "[" * 100_000,
    "an entry under another name": lambda text: text.replace('"started"', '"starred"'),
    "without its name": lambda text: text.replace('"name"', '"nane"'),
    "a seed that is a text": lambda text: json.dumps(json.loads(text) | {"seed": "3"}),
    "a digest of nothing": lambda text: json.dumps(json.loads(text) | {"digest": None}),
    "a seed that is a list": lambda text: text.replace('"seed": 3', '"seed": [3]'),
}


@pytest.mark.parametrize("write", [older, with_digest], ids=["older", "with a digest"])
@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES)
def test_a_damaged_record_is_named_once_passed_over_and_counted(write, damage, capsys):
    path, whole = write(), older(seed=4)
    path.write_text(damage(path.read_text(encoding="utf-8")), encoding="utf-8")
    for _ in range(2):
        assert records.read_record(path) is None
        assert [record["seed"] for record in records.read_records("quick")] == [4]
    said = capsys.readouterr().err
    assert said.count("passed over") == 1 and str(path) in said
    assert records.damaged("quick") == [path] and records.damage(whole) is None
    assert str(path) in records.damage(path)


def test_one_changed_bit_of_a_score_is_noticed():
    path = with_digest()
    path.write_text(path.read_text(encoding="utf-8").replace("0.6093", "0.7093"), encoding="utf-8")
    assert "expected content with the digest" in records.damage(path)


@pytest.mark.parametrize("name", ["seed4.json", "seed3 (1).json", "seed3 (conflicted copy).json", "seed03.json"])
def test_a_copy_of_a_record_is_no_second_run(name):
    path = older()
    copy = path.with_name(path.name.replace("seed3.json", name))
    copy.write_bytes(path.read_bytes())
    assert [record["seed"] for record in records.read_records("quick")] == [3]
    assert records.damage(copy) == f"{copy} is a copy of {path.name}, the file of another run: delete it"
    elsewhere = older(scale="cpu")
    elsewhere.write_bytes(path.read_bytes())
    assert records.read_records("cpu") == []


@pytest.mark.parametrize("scale", ["../runs/quick", "../../other/quick", "."])
def test_a_record_whose_scale_is_a_path_is_passed_over(scale, results):
    path = older(scale=scale)
    own = records.record_path(NAME, "quick", 3)
    own.parent.mkdir(parents=True, exist_ok=True)
    path.replace(own)
    assert records.read_records("quick") == [] and records.damaged("quick") == [own]


def test_what_is_no_file_is_passed_over(results):
    folder = records.record_path(NAME, "quick", 0).parent
    (folder / "a.json").mkdir(parents=True)
    os.mkfifo(folder / "b.json")  # to read it would wait for ever
    (folder / "c.json").symlink_to(folder / "nowhere")
    assert records.read_records("quick") == [] and len(records.damaged("quick")) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"status": "failed"}'])
def test_a_damaged_note_is_passed_over_and_the_next_one_written(text):
    damaged = records.write_unfinished(RECORD | {"status": "failed"})
    damaged.write_text(text, encoding="utf-8")
    assert records.write_unfinished(RECORD | {"status": "failed"}).name.endswith("--2.json")
    assert records.unfinished("quick", "failed") == 1 and records.damaged("quick") == [damaged]


@pytest.mark.parametrize("name", ["--1 (1).json", "--2.json", "--1 conflicted.json"])
def test_a_copy_of_a_note_is_no_second_failure(name):
    note = records.write_unfinished(RECORD | {"status": "failed"})
    copy = note.with_name(note.name.replace("--1.json", name))
    copy.write_bytes(note.read_bytes())
    assert records.unfinished("quick", "failed") == 1 and records.damaged("quick") == [copy]
    records.write_unfinished(RECORD | {"status": "failed"})
    assert records.unfinished("quick", "failed") == 2
    elsewhere = note.parent.parent.with_name("cpu") / "unfinished" / note.name
    elsewhere.parent.mkdir(parents=True)
    elsewhere.write_bytes(note.read_bytes())
    assert records.unfinished("cpu", "failed") == 0 and records.damaged("cpu") == [elsewhere]


def test_a_note_that_cannot_be_written_whole_is_not_there(monkeypatch):
    def broken(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_bytes", broken)
    with pytest.raises(OSError, match=r"No space left on device: '.*--1\.json'"):
        records.write_unfinished(RECORD | {"status": "failed"})
    assert not list(files.RESULTS.rglob("*.json*"))


TEXTS = [{"mr": "name[Zizzi]", "prediction": "Zizzi is\u2028a pub ."}, {"mr": "name[Aromi]", "prediction": "Aromi ."}]


@pytest.mark.parametrize("facts", [{"inputs": 2}, {"predictions_digest": files.digest(TEXTS)}])
def test_texts_are_read_back_whole_or_passed_over(facts, capsys):
    path = records.write_predictions(NAME, "quick", 3, TEXTS)
    records.write_record(RECORD | facts)
    (record,) = records.read_records("quick")
    assert records.read_predictions(record) == TEXTS
    whole = path.read_bytes()
    for damaged in (whole[:-20], whole[: whole.index(b"\n") + 1], whole + b"3\n", b"", b"\xff" + whole):
        path.write_bytes(damaged)
        assert records.read_predictions(record) == [] and records.damaged("quick") == [path]
    assert str(path) in capsys.readouterr().err
    path.unlink()
    assert records.read_predictions(record) == records.damaged("quick") == []


def test_texts_of_another_run_are_not_those_of_the_record():
    path = records.write_predictions(NAME, "quick", 3, TEXTS)
    record = RECORD | {"predictions_digest": files.digest(TEXTS)}
    path.write_text(path.read_text(encoding="utf-8").replace("Aromi .", "Aromi !"), encoding="utf-8")
    assert records.read_predictions(record) == []


def test_a_score_that_was_not_measured_is_no_number():
    settings = {"settings": {"task": "e2e"}}
    assert records.main_score(settings | {"scores": {"BLEU": 0.5}})[2] == 50
    assert records.main_score(settings | {"scores": {"BLEU": None}})[2] is None


def test_a_folder_without_room_or_that_cannot_be_written_is_named_with_what_is_missing(results, monkeypatch):
    files.check_room(results)
    with pytest.raises(OSError, match=rf"no space left in {results}: expected 10000000.* MB free, found \d.*make room"):
        files.check_room(results, 10**19)
    (results / "file").touch()
    with pytest.raises(OSError, match=rf"nothing can be written into {results}/file/below \(Not a directory\)"):
        files.check_room(results / "file" / "below")


@pytest.mark.parametrize("error", [RuntimeError("unexpected pos 543616 vs 543504"), OSError(28, "No space left")])
def test_an_error_on_a_disk_without_room_says_so_and_any_other_stays_itself(results, monkeypatch, error):
    with pytest.raises(type(error), match=error.args[-1]), files.room(results, 1):
        raise error
    usage = shutil.disk_usage(results)
    with pytest.raises(OSError, match="no space left in"), files.room(results, 10**6):
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=10))
        raise error
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage)
    with pytest.raises(ValueError, match="another"), files.room(results, 1):
        monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=0))
        raise ValueError("another")


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
