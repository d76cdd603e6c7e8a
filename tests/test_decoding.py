"""A trained row decoded anew: nothing is trained, and only the search is changed."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

import files
from experiments import catalogue
from experiments.decoding import CHANGES, CHOSEN_PENALTIES, PENALTIES
from experiments.settings import Experiment, Settings
from runs import records
from runs.execute import do
from runs.run import Run

TRAINED, ANEW = "table3/gpt2-mini/e2e-builtin/few-{}", "decoding/gpt2-mini/e2e-builtin/few-{}/{}"
SHORT = {"train_rows": 40, "max_new_tokens": 8, "beams": 2}


@pytest.fixture
def row(tmp_path, monkeypatch):
    """Declare a row of five steps and its decodings; gives their runs by the name of the change."""
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")

    def declare(method: str, changes: dict[str, dict], seed: int) -> dict[str, Run]:
        likeness = "lora-r4" if method == "lora" else method
        settings = replace(catalogue.find(f"table3/gpt2-mini/e2e-builtin/{likeness}").settings, **SHORT)
        experiments = {"": Experiment(TRAINED.format(method), "", settings, "quick")}
        for name, change in changes.items():
            anew = replace(settings, epochs=0, start_from=TRAINED.format(method), **change)
            experiments[name] = Experiment(ANEW.format(method, name), "", anew, "quick")
        monkeypatch.setattr("runs.execute.EXPERIMENTS", {e.name: e for e in experiments.values()})
        monkeypatch.setattr(catalogue, "EXPERIMENTS", {e.name: e for e in experiments.values()})
        return {name: Run(experiment, seed) for name, experiment in experiments.items()}

    return declare


def texts(record: dict) -> list[str]:
    path = records.predictions_path(record["name"], record["scale"], record["seed"])
    return [json.loads(line)["prediction"] for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize("method", ["lora", "full"])
def test_decoded_as_it_was_it_gives_the_same_texts_and_decoded_otherwise_others(method, row):
    runs = row(method, {"same": {}, "one-beam": {"beams": 1, "max_new_tokens": 5}, "dev": {"evaluate": "dev"}}, seed=1)
    do(runs["same"])  # first the row of the same seed is trained
    trained = records.read_record(runs[""].record)
    assert trained["seed"] == 1 and trained["steps"] == 5
    same, other, dev = (do(runs[name]) for name in ("same", "one-beam", "dev"))
    assert same["scores"] == trained["scores"] and texts(same) == texts(trained)
    assert texts(other) != texts(trained)
    assert dev["inputs"] != trained["inputs"] and dev["scores"]["BLEU"] >= 0
    for record in (same, other, dev):
        assert record["parameters"] == trained["parameters"]
        assert "steps" not in record and "training_seconds" not in record


def test_no_epochs_without_a_start_is_refused():
    with pytest.raises(ValueError, match="epochs must be above 0 in a run that starts from no other, found 0"):
        Settings("e2e", "gpt2-mini", "lora", learning_rate=1e-3, epochs=0, batch_size=8)


def test_each_trained_row_is_decoded_at_every_penalty_on_dev_and_at_the_chosen_one_on_test():
    for base, rows in CHOSEN_PENALTIES.items():
        for name, penalty in rows.items():
            anew = {c: catalogue.find(f"decoding/{base}/{name}/{c}") for c in (*CHANGES, "chosen-penalty")}
            on_dev = [e.settings for e in anew.values() if e.settings.evaluate == "dev"]
            assert [settings.length_penalty for settings in on_dev] == list(PENALTIES)
            assert anew["chosen-penalty"].settings.length_penalty == penalty
            for experiment in anew.values():
                trained = catalogue.find(experiment.settings.start_from)
                assert trained.name == f"table3/{base}/{name}"
                search = ("beams", "length_penalty", "blank_line_ends", "evaluate", "epochs", "start_from")
                back = {field: getattr(trained.settings, field) for field in search}
                assert replace(experiment.settings, **back) == trained.settings


@pytest.mark.parametrize(("base", "row"), [(base, row) for base, rows in CHOSEN_PENALTIES.items() for row in rows])
def test_the_chosen_penalty_is_the_best_on_the_dev_set(base, row):
    scores = {}
    for penalty in PENALTIES:
        for record in records.records_of(catalogue.find(f"decoding/{base}/{row}/dev/penalty-{penalty:g}")):
            scores.setdefault(penalty, []).append(record["scores"]["BLEU"])
    if len(scores) < len(PENALTIES):
        pytest.skip(f"not every penalty of {base} {row} is recorded")
    means = {penalty: sum(values) / len(values) for penalty, values in scores.items()}
    assert max(means, key=means.get) == CHOSEN_PENALTIES[base][row]
