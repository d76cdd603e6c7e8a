"""The trial of the three catalogues: one entry each is all that a new base, a new task and a new method take.

Everything is made in the test's own folder: a Llama and its tokenizer, a task whose answers are written, a task of
classes, and a method that trains the weights of the norms.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from statistics import fmean
from typing import Any

import pandas as pd
import pytest
import torch
from tokenizers import Tokenizer, decoders, pre_tokenizers
from tokenizers.models import BPE
from tokenizers.trainers import BpeTrainer
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import files
import models
from analysis.quantities import quantities
from experiments import catalogue as experiments_catalogue
from experiments.settings import Experiment, Job, Settings, name_of
from families import head_parameters
from methods import catalogue as methods_catalogue
from methods.catalogue import Method
from methods.saved import load_adapter
from models import Base, architecture, load_model
from publish.tables import as_text, table
from runs.execute import do, measure
from runs.run import Run
from tasks.catalogue import TASKS, GlueTask, Metric, Task, glue_task
from tasks.e2e.data import Example, Inputs

END = "<|endoftext|>"
COLOURS, THINGS = ("red", "blue", "green", "black"), ("door", "car", "house", "boat", "hat")
LLAMA = {
    "vocab_size": 300, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4,
    "num_key_value_heads": 2, "max_position_embeddings": 64, "bos_token_id": 0, "eos_token_id": 0,
}  # fmt: skip


# What is new ------------------------------------------------------------------------------------------------------


def train_norms(model: nn.Module, settings: Settings) -> None:
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(is_norm(name))


def is_norm(name: str) -> bool:
    return "norm" in name.lower() and name.endswith("weight")


def sentences(split: str, protocol: str, data_dir: Path | None) -> list[Example]:
    """Twenty pairs of a colour and a thing, each with two sentences: 40 rows; the first six to judge by."""
    pairs = [(colour, thing) for colour in COLOURS for thing in THINGS]
    rows = [
        Example(f"colour[{colour}], thing[{thing}]", f"{colour} {thing}", sentence)
        for colour, thing in pairs
        for sentence in (f"the {thing} is {colour}", f"here is a {colour} {thing}")
    ]
    return rows if split == "train" else rows[:12]


def named(inputs: list[Inputs], texts: list[str], settings: Any) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """How often the colour is in the text, and how long texts are."""
    hits = [item.context.split()[0] in text for item, text in zip(inputs, texts, strict=True)]
    scores = {"colour_named": fmean(hits), "letters": fmean(map(len, texts))}
    return scores, [{"named": hit} for hit in hits]


WRITTEN = Task(
    name="colours-written", title="Colours", metrics={"colour_named": Metric(True), "letters": Metric(unit=1.0)},
    train_rows=40, test_inputs=6, mean_tokens=8, load=sentences, score=named,
)  # fmt: skip
CHOSEN = GlueTask(
    name="colours-chosen", title="Colours", metrics={"accuracy": Metric(True), "f1": Metric(True)}, train_rows=44,
    test_inputs=12, mean_tokens=8, columns=("sentence",), labels=("warm", "cold"), validation={"validation": 12},
)  # fmt: skip


def save_llama(folder: Path) -> None:
    """A random Llama, and a tokenizer that has read the sentences of the task."""
    torch.manual_seed(0)
    LlamaForCausalLM(LlamaConfig(**LLAMA, initializer_range=0.3)).save_pretrained(folder)
    tokenizer = Tokenizer(BPE())
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = BpeTrainer(vocab_size=300, special_tokens=[END], initial_alphabet=alphabet, show_progress=False)
    tokenizer.train_from_iterator([row.reference for row in sentences("train", "lora", None)], trainer)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=END, eos_token=END).save_pretrained(folder)


def write_parquet(data_dir: Path) -> None:
    folder = data_dir / "glue" / CHOSEN.name
    folder.mkdir(parents=True)
    for split, number in (("train", 44), ("validation", 12)):
        rows = [(f"a {COLOURS[i % 4]} {THINGS[i % 5]}", int(COLOURS[i % 4] != "red")) for i in range(number)]
        table = pd.DataFrame(rows, columns=["sentence", "label"])
        table.to_parquet(folder / f"{split}-00000-of-00001.parquet")


@pytest.fixture
def catalogues(tmp_path, monkeypatch):
    """The three catalogues with one entry more, and a second task."""
    monkeypatch.setattr(models, "MODELS", tmp_path)
    monkeypatch.setitem(models.BASES, "tiny-llama", Base("llama", "saved-llama", LLAMA, place="repository"))
    monkeypatch.setitem(methods_catalogue.METHODS, "norms", Method(train_norms))
    for task in (WRITTEN, CHOSEN):
        monkeypatch.setitem(TASKS, task.name, task)


# The trial --------------------------------------------------------------------------------------------------------

TEN_STEPS = Settings(
    task=WRITTEN.name, model="tiny-llama", method="norms", learning_rate=0.01, epochs=2, batch_size=8, keep="last",
    beams=2, max_new_tokens=6,
)  # fmt: skip


def moved(model: nn.Module, adapter: Path) -> set[str]:
    """The parameters of the plain model that training changed; what is loaded is refused if any other one moved."""
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    load_adapter(model, adapter)
    return {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}


def shown(settings: Settings, record: dict[str, Any]) -> dict[tuple[str, str], float | None]:
    """(metric, rule) -> what a table shows of the record."""
    return {(quantity.metric, quantity.rule): quantity.of(record) for quantity in quantities(settings)}


def test_a_new_base_a_new_written_task_and_a_new_method_are_trained_decoded_and_scored(tmp_path, catalogues):
    save_llama(tmp_path / "saved-llama")
    record, predictions = measure(Job(TEN_STEPS, 0, tmp_path / "checkpoints"), tmp_path / "adapter")
    assert record["steps"] == 10
    assert record["parameters"] == {
        "trainable": 5 * 32, "head": 0, "total": sum(p.numel() for p in architecture("tiny-llama").parameters())
    }  # fmt: skip
    assert record["rows"] == {"train": 40, "dev": 12, "test": 12} and record["inputs"] == len(predictions) == 6
    assert record["scores"]["colour_named"] == fmean(row["named"] for row in predictions)
    assert record["scores"]["letters"] == fmean(len(row["prediction"]) for row in predictions) > 0
    assert record["dev_loss"] > 0
    norms = {name for name, _ in architecture("tiny-llama").named_parameters() if is_norm(name)}
    assert len(norms) == 5
    assert moved(load_model("tiny-llama"), tmp_path / "adapter") == norms
    values = shown(TEN_STEPS, record)
    assert values["colour_named", "last"] == 100 * record["scores"]["colour_named"]
    assert values["letters", "last"] == record["scores"]["letters"]
    assert values["training_tokens", "cost"] == record["training_tokens"]


def test_the_new_base_takes_lora_without_another_entry(tmp_path, catalogues):
    save_llama(tmp_path / "saved-llama")
    lora = replace(TEN_STEPS, method="lora", rank=2, alpha=4.0, targets=("query", "value"))
    record, _ = measure(Job(lora, 0, tmp_path / "checkpoints"), tmp_path / "adapter")
    assert record["parameters"]["trainable"] == 2 * 2 * ((32 + 32) + (32 + 16))  # value is half as wide as query
    model = load_model("tiny-llama")
    load_adapter(model, tmp_path / "adapter")
    Bs = [parameter for name, parameter in model.named_parameters() if name.endswith("lora_B")]
    assert len(Bs) == 4 and all(B.any() for B in Bs)


def test_a_new_task_of_classes_is_trained_with_the_new_method_and_scored_by_both_rules(tmp_path, catalogues):
    write_parquet(tmp_path / "data")
    settings = replace(TEN_STEPS, task=CHOSEN.name, model="minilm", max_length=16)
    record, predictions = measure(Job(settings, 0, tmp_path / "checkpoints", tmp_path / "data"), tmp_path / "adapter")
    assert record["steps"] == 10
    assert record["rows"] == {"train": 39, "validation": 12, "held_out": 5}
    assert record["subset"] == {"train": False, "validation": False}
    right = [row["prediction"] == row["label"] for row in predictions]
    assert record["scores"]["accuracy"] == pytest.approx(sum(right) / 12)
    plain = load_model("minilm", CHOSEN.outputs)
    expected = {name for name, _ in plain.named_parameters() if is_norm(name)}
    assert len(expected) == 2 * 6 + 1
    assert moved(plain, tmp_path / "adapter") == expected | head_parameters(plain).keys()
    values = shown(settings, record)
    for rule, scores in (("paper", record["scores"]), ("held-out", record["honest_scores"])):
        for metric in CHOSEN.metrics:
            assert values[metric, rule] == pytest.approx(100 * scores[metric])


def test_a_declared_experiment_of_what_is_new_is_recorded_and_has_its_row_in_a_table(tmp_path, catalogues, monkeypatch):
    save_llama(tmp_path / "saved-llama")
    for place in ("RESULTS", "CHECKPOINTS"):
        monkeypatch.setattr(files, place, tmp_path / place.lower())
    rows = [
        Experiment(name_of("table3", settings, settings.method), "a trial", settings, "cpu")
        for settings in (replace(TEN_STEPS, epochs=12, method=method) for method in ("full", "norms"))
    ]
    assert [row.name for row in rows] == [f"table3/tiny-llama/colours-written/{row}" for row in ("full", "norms")]
    for row in rows:
        monkeypatch.setitem(experiments_catalogue.EXPERIMENTS, row.name, row)
    assert "one seed only" not in as_text(table(rows), "table3", "cpu")
    records = [do(Run(row, 0), say=str) for row in rows]
    text = as_text(table(rows), "table3", "cpu")
    full, norms = (100 * record["scores"]["colour_named"] for record in records)
    assert full > norms
    assert f"{norms - full:+.2f} colour_named, one seed only" in text  # held against the same base, trained whole
    for row, record in zip(rows, records, strict=True):
        line = next(line for line in text.splitlines() if row.name in line)
        assert f"{record['parameters']['trainable']:,}" in line
        assert f"{100 * record['scores']['colour_named']:.2f}" in line


@pytest.mark.parametrize(
    ("entries", "name", "ask", "known"),
    [
        (models.BASES, "tiny-llama", load_model, "gpt2, gpt2-medium"),
        (TASKS, CHOSEN.name, glue_task, "mnli, sst2"),
        (methods_catalogue.METHODS, "norms", methods_catalogue.method, "full, lora"),
    ],
    ids=["base", "task", "method"],
)
def test_without_its_entry_the_error_names_those_there_are(catalogues, monkeypatch, entries, name, ask, known):
    monkeypatch.delitem(entries, name)
    with pytest.raises(ValueError, match=f"is called '{name}'; the .* are {known}"):
        ask(name)
