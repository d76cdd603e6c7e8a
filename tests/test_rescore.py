"""Scores that are newer than a record: computed from its texts, stored beside it, and never instead of its own."""

import json
import shutil
from dataclasses import replace

import pytest

import files
from experiments.catalogue import find
from runs import records
from runs.rescore import rescore
from tasks.catalogue import TASKS
from tasks.e2e.data import Example, data_fingerprint, group_by_context

NAME = "table3/gpt2-mini/lora-r4"
ROWS = [
    Example("name[Zizzi], eatType[pub]", "name : Zizzi | Type : pub", "Zizzi is a pub ."),
    Example("name[Zizzi], food[French]", "name : Zizzi | food : French", "Zizzi serves French food in the city ."),
]


@pytest.fixture
def record(tmp_path, monkeypatch):
    """A record of before the brevity penalty was scored, with its texts."""
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    monkeypatch.setitem(TASKS, "e2e", replace(TASKS["e2e"], load=lambda *_: list(ROWS)))
    texts = [{"mr": item.mr, "prediction": "Zizzi is a pub ."} for item in group_by_context(ROWS)]
    records.write_predictions(NAME, "cpu", 0, texts)
    record = {
        "name": NAME, "scale": "cpu", "seed": 0, "predictions": f"{records.run_id(NAME, 0)}.jsonl", "task_version": 1,
        "settings": {"task": "e2e"}, "scores": {"BLEU": 0.125, "share_at_cap": 0.0},
        "data_fingerprint": {"test": data_fingerprint(ROWS)},
    }  # fmt: skip
    return records.write_record(record)


def test_a_record_without_a_score_gets_it_and_keeps_its_own(record):
    before = record.read_bytes()
    assert rescore("cpu") == 1
    scores = records.read_record(record)["scores"]
    assert 0 < scores["brevity_penalty"] < 1 and scores["BLEU"] == 0.125
    assert scores["BLEU_unpenalised"] > 0 and record.read_bytes() == before
    assert "BLEU" not in json.loads(records.rescored_path(record).read_text())["scores"]
    assert rescore("cpu") == 0


def test_texts_of_the_dev_set_are_scored_on_the_dev_set(record, monkeypatch):
    name, rows = "decoding/gpt2-mini/lora-r4/dev/penalty-1.2", ROWS[:1]
    by_split = {"dev": rows, "test": ROWS}
    monkeypatch.setitem(TASKS, "e2e", replace(TASKS["e2e"], load=lambda split, *_: list(by_split[split])))
    texts = [{"mr": item.mr, "prediction": "Zizzi is a pub ."} for item in group_by_context(rows)]
    records.write_predictions(name, "cpu", 0, texts)
    facts = {"name": name, "predictions": f"{records.run_id(name, 0)}.jsonl"}
    path = records.write_record(
        records.read_record(record) | facts | {"data_fingerprint": {"dev": data_fingerprint(rows)}}
    )
    assert rescore("cpu") == 2
    assert "brevity_penalty" in records.read_record(path)["scores"]


def test_a_score_that_cannot_be_had_is_said_and_tried_again(record, monkeypatch, capsys):
    score = TASKS["e2e"].score

    def without_meteor(*inputs):
        scores, findings = score(*inputs)
        return scores | {"METEOR": None}, findings

    monkeypatch.setitem(TASKS, "e2e", replace(TASKS["e2e"], score=without_meteor))
    assert rescore("cpu") == 1 and "without METEOR" in capsys.readouterr().err
    assert rescore("cpu") == 1  # it is still lacking


@pytest.mark.parametrize("spoil", [lambda path: path.write_text('{"mr'), lambda path: path.unlink()])
def test_a_record_whose_texts_are_damaged_or_lost_is_named_and_the_others_get_their_score(record, spoil, capsys):
    texts = records.predictions_path(NAME, "cpu", 0)
    other = records.predictions_path(NAME, "cpu", 1)
    shutil.copy(texts, other)
    records.write_record(records.read_record(record) | {"seed": 1, "predictions": other.name})
    spoil(texts)
    assert rescore("cpu") == 1
    assert f"no whole {texts} to score" in capsys.readouterr().err
    assert not records.rescored_path(record).exists()
    assert "brevity_penalty" in records.read_records("cpu")[1]["scores"]


def test_newer_scores_that_are_damaged_or_of_another_run_do_not_count(record):
    rescore("cpu")
    path = records.rescored_path(record)
    other = path.with_name(path.name.replace("seed0", "seed1"))
    shutil.copy(path, other)
    path.write_text(path.read_text().replace('"brevity_penalty": 0', '"brevity_penalty": 1'))
    assert records.read_record(record)["scores"] == {"BLEU": 0.125, "share_at_cap": 0.0}
    assert records.damaged("cpu") == [path, other]


def test_newer_scores_that_are_older_than_digests_count(record):
    path = records.rescored_path(record)
    path.parent.mkdir(parents=True)
    path.write_text('{"scores": {"brevity_penalty": 0.5}, "python": "3.11.7"}')
    assert records.read_record(record)["scores"]["brevity_penalty"] == 0.5
    assert records.damaged("cpu") == []


def test_texts_of_other_data_are_not_scored(record, monkeypatch):
    other = [ROWS[0], replace(ROWS[1], reference="Zizzi is French .")]
    monkeypatch.setitem(TASKS, "e2e", replace(TASKS["e2e"], load=lambda *_: list(other)))
    with pytest.raises(ValueError, match=r"is of other data than those at hand; expected \w+, found \w+"):
        rescore("cpu")
    assert not records.rescored_path(record).exists()


def test_a_learning_rate_that_was_only_searched_has_no_texts_to_score(record, monkeypatch):
    name = "learning-rate/gpt2-mini/lora/0.008"
    assert find(name).settings.evaluate == "selection"
    records.write_record({"name": name, "scale": "cpu", "seed": 0, "settings": {"task": "e2e"}, "dev_loss": 1.5})
    assert rescore("cpu") == 1


def test_a_score_that_comes_later_still_leaves_the_earlier_ones(record, monkeypatch):
    rescore("cpu")
    earlier = records.read_record(record)["scores"]
    task = TASKS["e2e"]
    scored = lambda *given: ({**task.score(*given)[0], "newest": 0.5}, [])  # noqa: E731
    newest = replace(task, metrics=task.metrics | {"newest": task.metrics["BLEU"]}, score=scored)
    monkeypatch.setitem(TASKS, "e2e", newest)
    assert (rescore("cpu"), rescore("cpu")) == (1, 0)
    assert records.read_record(record)["scores"] == earlier | {"newest": 0.5}
