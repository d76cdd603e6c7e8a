"""FT^Top k and BitFit: which of a model's own parameters are trained."""

from __future__ import annotations

import pytest
import torch
from safetensors.torch import load_file

from experiments.settings import Job
from families import FAMILIES
from methods.partial import train_biases, train_top_layers
from tasks.e2e.loss import completion_loss
from tiny_models import INSIDE, LAYERS, TOKENS, adapted, expected_names, logits, settings, tiny
from training.batches import IGNORED
from training.trainer import WEIGHTS_FILE, train


def test_a_method_that_trains_no_matrix_can_be_trained_where_only_matrices_decay(tmp_path):
    rows = [{"input_ids": row, "labels": [IGNORED, *row[1:]]} for row in TOKENS.tolist()] * 4
    model = adapted("bitfit")
    before = logits(model)
    chosen = settings("bitfit", decay="matrices", keep="last")
    train(model, rows, Job(chosen, 0, tmp_path), completion_loss, lambda *_: {"loss": 0.0})
    assert not torch.equal(logits(model), before)
    checkpoint = load_file(next(tmp_path.glob("checkpoint-*")) / WEIGHTS_FILE)
    assert checkpoint.keys() == expected_names("bitfit", "gpt2")


def test_bitfit_refuses_a_llama_whose_layers_have_no_biases_and_leaves_it_plain():
    model = tiny("llama")
    with pytest.raises(ValueError, match="the layers of LlamaForCausalLM have none; choose another method"):
        train_biases(model)
    assert all(p.requires_grad for p in model.parameters())


def test_a_llama_with_biases_takes_bitfit():
    model = tiny("llama", attention_bias=True)
    train_biases(model)
    trained = {name for name, p in model.named_parameters() if p.requires_grad}
    matrices = ("q_proj", "k_proj", "v_proj", "o_proj")
    assert trained == {f"model.layers.{i}.self_attn.{m}.bias" for i in range(LAYERS) for m in matrices}


def test_what_stands_above_the_top_layers_stays_frozen():
    for family in FAMILIES:
        model = tiny(family)
        train_top_layers(model, 1)
        trained = {name for name, p in model.named_parameters() if p.requires_grad}
        assert trained == {name for name, _ in model.named_parameters() if name.startswith(f"{INSIDE[family][0]}.2.")}
