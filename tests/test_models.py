"""Loading a base: quiet about a fresh head, refused where anything else is missing, damaged or not expected."""

from __future__ import annotations

import io
import json
import logging.handlers
import pickle
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

import models
from adapter_files import save_lora
from families import head_parameters
from lora import LoRAConfig, add_lora
from models import Base, load_model, load_tokenizer

SHAPE = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20,
    "max_position_embeddings": 12,
}  # fmt: skip


@pytest.fixture
def saved(tmp_path, monkeypatch):
    """Save a tiny RoBERTa without a head, less the named weights, and make it the base `tiny`."""

    def save(*without: str) -> None:
        model = RobertaModel(RobertaConfig(**SHAPE), add_pooling_layer=False)
        state = {name: tensor for name, tensor in model.state_dict().items() if name not in without}
        model.save_pretrained(tmp_path / "tiny", state_dict=state)
        monkeypatch.setattr(models, "MODELS", tmp_path)
        monkeypatch.setitem(models.BASES, "tiny", Base("roberta", "tiny", SHAPE, "repository"))

    return save


def test_a_base_without_a_head_gets_a_fresh_one_of_so_many_outputs_and_nothing_is_said(saved):
    saved()
    said = logging.handlers.BufferingHandler(100)
    logging.getLogger("transformers").addHandler(said)
    model = load_model("tiny", 3)
    assert isinstance(model, RobertaForSequenceClassification)
    assert head_parameters(model)["classifier.out_proj.weight"].shape == (3, 8)
    logging.getLogger("transformers").removeHandler(said)
    assert said.buffer == []


def test_a_base_that_lacks_a_weight_is_refused_by_its_name(saved):
    saved("encoder.layer.0.attention.self.query.weight")
    with pytest.raises(ValueError, match=r"all weights but a head's in .*tiny, found none of .*self.query.weight"):
        load_model("tiny", 3)


class Trap:
    """A pickle that leaves a file behind when it is opened."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def test_weights_that_are_a_pickle_with_code_in_it_are_refused_unopened(saved, tmp_path):
    saved()
    (tmp_path / "tiny/model.safetensors").unlink()
    torch.save({"weights": Trap(tmp_path / "mark")}, tmp_path / "tiny/pytorch_model.bin")
    with pytest.raises(ValueError, match=r"whole files without code in them, found UnpicklingError.*anew from git"):
        load_model("tiny", 3)
    (tmp_path / "tiny/pytorch_model.bin").rename(tmp_path / "tiny/model.safetensors")
    with pytest.raises(ValueError, match=r"whole files without code in them, found SafetensorError.*anew from git"):
        load_model("tiny", 3)
    assert not (tmp_path / "mark").exists()
    pickle.loads(pickle.dumps(Trap(tmp_path / "mark")))
    assert (tmp_path / "mark").exists()


def test_code_beside_a_tokenizer_is_not_run_whatever_is_on_standard_input(saved, tmp_path, monkeypatch):
    saved()
    folder = tmp_path / "tiny"
    (folder / "code.py").write_text(f"open({str(tmp_path / 'mark')!r}, 'x')")
    names = {"AutoConfig": "code.C", "AutoTokenizer": ["code.T", "code.T"]}
    for file in ("config.json", "tokenizer_config.json"):
        (folder / file).write_text(json.dumps({"model_type": "new", "tokenizer_class": "T", "auto_map": names}))
    monkeypatch.setattr("sys.stdin", io.StringIO("y\n" * 9))
    with pytest.raises(ValueError, match="whole files without code in them"):
        load_tokenizer("tiny")
    assert not (tmp_path / "mark").exists()


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # in PEFT
def test_an_adapter_beside_a_base_is_not_taken_for_a_part_of_it(saved, tmp_path):
    saved()
    model = load_model("tiny", 3)
    add_lora(model, LoRAConfig())
    save_lora(model, tmp_path / "tiny")
    with pytest.raises(ValueError, match=r"expected a plain model in .*tiny, found an adapter beside it"):
        load_model("tiny", 3)


@pytest.mark.parametrize("file", models.GPT2_MINI_FILES)
def test_a_changed_byte_in_what_belongs_to_the_weights_is_noticed(file, tmp_path, monkeypatch):
    shutil.copytree(models.MODELS / "gpt2-mini", tmp_path / "gpt2-mini")
    monkeypatch.setattr(models, "MODELS", tmp_path)
    path = tmp_path / "gpt2-mini" / file
    text = path.read_text(encoding="utf-8")
    path.write_text(text.replace("\n", "\r\n"), encoding="utf-8", newline="")  # as git does on Windows
    assert load_tokenizer("gpt2-mini")("a pub").input_ids
    path.write_text(text[::-1], encoding="utf-8", newline="")
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match=rf"{file} is not the released file: expected SHA-256.*check it out anew"):
            load("gpt2-mini")


@pytest.mark.parametrize("file", sorted(models.ALSO_READ))
def test_a_file_that_is_not_of_the_base_but_would_be_read_with_it_is_refused(file, tmp_path, monkeypatch):
    shutil.copytree(models.MODELS / "gpt2-mini", tmp_path / "gpt2-mini")
    monkeypatch.setattr(models, "MODELS", tmp_path)
    assert len(load_tokenizer("gpt2-mini")) == 8192
    (tmp_path / "gpt2-mini" / file).write_text('{"pub": 8192}')
    for load in (load_model, load_tokenizer):
        with pytest.raises(ValueError, match=rf"expected no {file} in .*gpt2-mini, which would change .*: delete it"):
            load("gpt2-mini")


@pytest.mark.parametrize("content", [b"", b"[]", b"{", b"\x80", b"[" * 99999], ids=lambda content: str(content)[:5])
@pytest.mark.parametrize("file", ["config.json", "tokenizer.json", "tokenizer_config.json", "vocab.json"])
def test_a_damaged_file_of_a_tokenizer_whose_checksum_is_unknown_is_an_error_with_its_place(
    file, content, tmp_path, monkeypatch
):
    tokenizer = load_tokenizer("gpt2-mini")
    monkeypatch.setitem(models.BASES, "gpt2-mini", replace(models.BASES["gpt2-mini"], beside={}))
    shutil.copytree(models.MODELS / "gpt2-mini", tmp_path / "gpt2-mini")
    if file == "tokenizer.json":
        tokenizer.save_pretrained(tmp_path / "gpt2-mini")
    monkeypatch.setattr(models, "MODELS", tmp_path)
    (tmp_path / "gpt2-mini" / file).write_bytes(content)
    with pytest.raises((ValueError, FileNotFoundError), match=f"cannot load gpt2-mini from {tmp_path}"):
        load_tokenizer("gpt2-mini")
