"""The adapters in results/adapters: their cards are what the records give, their tensors fit their bases."""

from __future__ import annotations

import json
import shutil

import pytest

import files
from adapter_files import load_lora, read_tensors
from experiments.catalogue import find
from lora import LoRAConfig, add_lora
from models import architecture, load_model, load_tokenizer
from publish import shipped_adapters
from publish.shipped_adapters import SHIPPED, card, folder_of
from runs import records
from runs.run import Run
from tasks.e2e.beam_search import DecodingSettings, generate

NAMES = [*SHIPPED]


@pytest.mark.parametrize("name", NAMES)
def test_a_card_tells_the_scores_of_the_record(name):
    experiment, seed = SHIPPED[name]
    record = records.read_record(Run(find(experiment), seed).record)
    assert f"| BLEU | {100 * record['scores']['BLEU']:.2f} |" in card(name)
    assert f"| slot errors (%) | {100 * record['scores']['slot_error_rate']:.2f} |" in card(name)
    assert f"run {experiment} --seed {seed}`, commit {record['git_commit'][:7]}" in card(name)
    assert shipped_adapters.stale() == []


@pytest.mark.parametrize("name", NAMES)
def test_the_tensors_are_those_of_pairs_in_the_base(name):
    settings = find(SHIPPED[name][0]).settings
    model = architecture(settings.model)
    add_lora(model, LoRAConfig(settings.rank, settings.alpha, settings.lora_dropout, settings.targets))
    wanted = {n.replace("lora_A", "lora_A.weight").replace("lora_B", "lora_B.weight"): tuple(p.shape)
              for n, p in model.named_parameters() if p.requires_grad}  # fmt: skip
    _, tensors = read_tensors(folder_of(name) / "adapter_model.safetensors", "lora")
    found = {n.removeprefix("base_model.model."): tuple(tensor.shape) for n, tensor in tensors.items()}
    assert found == wanted
    config = json.loads((folder_of(name) / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == settings.model and config["r"] == settings.rank


def test_a_card_that_was_edited_is_stale(tmp_path, monkeypatch):
    name = NAMES[0]
    shutil.copytree(folder_of(name), tmp_path / "adapters" / name)
    monkeypatch.setattr(shipped_adapters, "folder_of", lambda name: tmp_path / "adapters" / name)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    assert shipped_adapters.stale() == []
    path = tmp_path / "adapters" / name / "README.md"
    path.write_text(path.read_text().replace("BLEU | 6", "BLEU | 7"))
    assert shipped_adapters.stale() == [
        f"adapters/{name}/README.md is not what the record gives: `python code/make.py adapters`"
    ]


@pytest.mark.network
@pytest.mark.parametrize("name", NAMES)
def test_an_adapter_writes_the_texts_of_its_record(name):
    experiment, seed = SHIPPED[name]
    settings = find(experiment).settings
    model, tokenizer = load_model(settings.model), load_tokenizer(settings.model)
    load_lora(model, folder_of(name))
    rows = records.read_predictions(records.read_record(Run(find(experiment), seed).record))[:3]
    written = generate(model.eval(), tokenizer, [row["context"] for row in rows], DecodingSettings())
    assert [answer.text for answer in written] == [row["prediction"] for row in rows]
