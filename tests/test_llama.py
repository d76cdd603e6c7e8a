"""LoRA on the Llama family: separate matrices, grouped key-value heads that make key and value narrower, a gate."""

from __future__ import annotations

import copy
from itertools import product

import pytest
import torch
from peft import PeftModel
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from adapter_files import load_lora, save_lora
from lora import LoRAConfig, add_lora, count_parameters, lora_layers, merge_lora, remove_lora, unmerge_lora
from test_lora import bits, logits, train
from test_lora_parity import ALPHA, RANK, peft_folder, randomise

# PEFT asks transformers for a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
MATRICES = {  # target -> the matrix in a layer, d_in, d_out: 4 query heads share 2 key-value heads of size 4
    "query": ("self_attn.q_proj", 16, 16),
    "key": ("self_attn.k_proj", 16, 8),
    "value": ("self_attn.v_proj", 16, 8),
    "output": ("self_attn.o_proj", 16, 16),
    "mlp_gate": ("mlp.gate_proj", 16, 24),
    "mlp_in": ("mlp.up_proj", 16, 24),
    "mlp_out": ("mlp.down_proj", 24, 16),
}
SEVEN = tuple(MATRICES)
SOME = [("query", "value"), ("key",), ("mlp_gate", "mlp_out"), SEVEN]
some_targets = pytest.mark.parametrize("targets", SOME, ids=", ".join)


def llama(**shape) -> LlamaForCausalLM:
    torch.manual_seed(0)
    tiny = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 2, "vocab_size": 24}
    tiny |= {"num_attention_heads": 4, "num_key_value_heads": 2, "initializer_range": 0.3}
    return LlamaForCausalLM(LlamaConfig(**tiny | shape, max_position_embeddings=16, tie_word_embeddings=True)).eval()


def adapted(targets: tuple[str, ...] = SEVEN) -> LlamaForCausalLM:
    """A Llama with random pairs, as if they had been trained."""
    model = llama()
    add_lora(model, LoRAConfig(RANK, ALPHA, targets=targets))
    return randomise(model)


def names(targets: tuple[str, ...]) -> set[str]:
    return {f"model.layers.{layer}.{MATRICES[target][0]}" for layer, target in product((0, 1), targets)}


def same_bits(model: nn.Module, other: nn.Module) -> set[str]:
    """The names of the parameters whose numbers are the same in both, to the last bit."""
    pairs = zip(model.named_parameters(), other.named_parameters(), strict=True)
    return {name for (name, p), (_, q) in pairs if torch.equal(bits(p), bits(q))}


@pytest.mark.parametrize("target", SEVEN)
def test_each_target_is_exactly_its_matrix_in_every_layer(target):
    assert set(add_lora(llama(), LoRAConfig(targets=(target,)))) == names((target,))


def test_all_seven_targets_change_nothing_at_first():
    model = llama()
    assert set(add_lora(model, LoRAConfig(targets=SEVEN))) == names(SEVEN)
    assert torch.equal(logits(model), logits(llama()))
    assert not torch.allclose(logits(randomise(model)), logits(llama()), atol=1e-2)


@some_targets
def test_a_step_changes_the_targets_matrices_and_no_bit_of_any_other(targets):
    model, plain = llama(), llama()
    add_lora(model, LoRAConfig(targets=targets))
    train(model)
    merge_lora(model)
    remove_lora(model)
    changed = {name for name, _ in plain.named_parameters()} - same_bits(model, plain)
    assert changed == {f"{name}.weight" for name in names(targets)}


@some_targets
def test_a_merged_model_computes_what_the_adapted_one_does(targets):
    model = adapted(targets)
    before = logits(model)
    merge_lora(model)
    assert torch.allclose(logits(model), before, atol=1e-5)
    assert not torch.allclose(logits(llama()), before, atol=1e-2)


def test_unmerging_gives_back_the_bits_and_removing_the_plain_architecture():
    model, plain = adapted(), llama()
    before = logits(model)
    merge_lora(model)
    merged = copy.deepcopy(model)
    unmerge_lora(model)
    assert torch.equal(logits(model), before)
    for changed in (model, merged):
        remove_lora(changed)
        assert [(n, type(m)) for n, m in changed.named_modules()] == [(n, type(m)) for n, m in plain.named_modules()]
        assert changed.lm_head.weight is changed.model.embed_tokens.weight
    assert same_bits(model, plain) == {name for name, _ in plain.named_parameters()}
    assert torch.allclose(logits(merged), before, atol=1e-5)


@some_targets
def test_a_saved_adapter_gives_the_same_logits_when_loaded(tmp_path, targets):
    model, loaded = adapted(targets), llama()
    save_lora(model, tmp_path)
    assert load_lora(loaded, tmp_path) == list(lora_layers(model))
    assert torch.equal(logits(loaded), logits(model))
    assert not torch.allclose(logits(llama()), logits(model), atol=1e-2)


def test_an_adapter_for_as_many_key_value_heads_as_query_heads_is_refused(tmp_path):
    save_lora(adapted(), tmp_path)
    with pytest.raises(
        ValueError, match=r"not for this LlamaForCausalLM: expected .*, found .*k_proj.lora_B.weight', 8"
    ):
        load_lora(llama(num_key_value_heads=4), tmp_path)


@some_targets
def test_peft_computes_the_same_from_our_folder(tmp_path, targets):
    model = adapted(targets)
    save_lora(model, tmp_path)
    theirs = PeftModel.from_pretrained(llama(), tmp_path).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    assert not torch.allclose(logits(llama()), logits(model), atol=1e-2)


@some_targets
def test_we_compute_the_same_from_pefts_folder(tmp_path, targets):
    modules = [MATRICES[target][0].rpartition(".")[2] for target in targets]  # "q_proj", "v_proj"
    theirs, ours = peft_folder(tmp_path, llama(), target_modules=modules, task_type="CAUSAL_LM"), llama()
    assert set(load_lora(ours, tmp_path)) == names(targets)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    assert not torch.allclose(logits(ours), logits(llama()), atol=1e-2)


@pytest.mark.parametrize("rank", [1, 4])
@some_targets
def test_a_matrix_has_r_times_its_inputs_and_outputs_to_train(targets, rank):
    model = llama()
    before = count_parameters(model)[1]
    add_lora(model, LoRAConfig(rank, targets=targets))
    trainable = 2 * sum(rank * (d_in + d_out) for _, d_in, d_out in (MATRICES[target] for target in targets))
    assert count_parameters(model) == (trainable, before + trainable)


@pytest.mark.parametrize(
    ("targets", "trainable"),
    [
        (("query", "value"), 30 * 8 * ((576 + 576) + (576 + 192))),  # 460,800; 552,960 if value were as wide as query
        (SEVEN, 30 * 8 * (2 * (576 + 576) + 2 * (576 + 192) + 3 * (576 + 1536))),
    ],
    ids=["query, value", "all seven"],
)
def test_smollm2_135m_has_a_narrow_value_in_each_of_its_thirty_layers(targets, trainable):
    shape = {"hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30, "vocab_size": 49152}
    with torch.device("meta"):
        model = llama(**shape, num_attention_heads=9, num_key_value_heads=3)
    assert count_parameters(model)[1] == 134_515_008
    add_lora(model, LoRAConfig(rank=8, targets=targets))
    assert count_parameters(model)[0] == trainable


def test_the_rank_is_held_against_the_narrow_matrix():
    add_lora(llama(), LoRAConfig(rank=8, targets=("query", "value")))
    add_lora(llama(), LoRAConfig(rank=9, targets=("query",)))
    with pytest.raises(ValueError, match=r"rank 9 is larger than the matrix to adapt, \(8, 16\)"):
        add_lora(llama(), LoRAConfig(rank=9, targets=("query", "value")))
