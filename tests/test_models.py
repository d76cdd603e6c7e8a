"""Loading a base: quiet about a fresh head, and refused where anything else is missing."""

from __future__ import annotations

import logging.handlers

import pytest
from transformers import RobertaConfig, RobertaForSequenceClassification, RobertaModel

import models
from families import head_parameters
from models import Base, load_model

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
