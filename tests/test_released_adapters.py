"""The authors' released files have the layout that loralib writes. Here loralib writes them from tiny models, and our
model has to compute what loralib's own does."""

from __future__ import annotations

import os
import pickle
from dataclasses import replace
from functools import partial

import loralib
import pytest
import torch
from torch import nn
from transformers import (
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

from adapter_files import save_lora
from experiments.catalogue import EXPERIMENTS, find
from experiments.glue import GLUE_TASKS
from experiments.glue import PAPER_MODELS as GLUE_MODELS
from experiments.settings import OFFICIAL, Job, Settings
from lora import LoRAConfig, add_lora, count_parameters, lora_layers, merge_lora, remove_lora
from methods.catalogue import apply_method
from methods.released_adapters import load_released_adapter, released_file
from methods.saved import load_adapter, save_adapter
from runs import execute
from tasks.glue import data as glue_data
from tiny_models import settings

WIDTH, RANK = 16, 4
TOKENS = torch.arange(12).reshape(2, 6)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    shape = {"n_layer": 2, "n_embd": WIDTH, "n_head": 2, "vocab_size": 24, "n_positions": 8, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**shape, bos_token_id=0, eos_token_id=0)).eval()


def encoder(name: str, labels: int = 3) -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
    shape |= {"vocab_size": 24, "max_position_embeddings": 16, "num_labels": labels}
    if name == "roberta":
        return RobertaForSequenceClassification(RobertaConfig(**shape)).eval()
    shape |= {"relative_attention": True, "share_att_key": True, "pos_att_type": ["c2p", "p2c"], "position_buckets": 4}
    return DebertaV2ForSequenceClassification(DebertaV2Config(**shape, initializer_range=0.3)).eval()


class OfficialQuery(loralib.Linear):
    """Positions, of which there are twice the buckets and one batch, go through the frozen weight alone."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.Linear.forward(self, x) if x.shape[:2] == (1, 2 * 4) else super().forward(x)


def loralib_gpt2(alpha: float = 32, enable=(True, False, True)) -> GPT2LMHeadModel:
    """The authors' GPT-2 with random pairs: loralib.MergedLinear as every c_attn."""
    model = gpt2()
    shape = {"r": RANK, "lora_alpha": alpha, "fan_in_fan_out": True, "merge_weights": False}
    for block in model.transformer.h:
        layer = loralib.MergedLinear(WIDTH, 3 * WIDTH, enable_lora=list(enable), **shape)
        layer.load_state_dict(block.attn.c_attn.state_dict(), strict=False)
        nn.init.normal_(layer.lora_B, std=0.1)
        block.attn.c_attn = layer
    return model.eval()


def loralib_encoder(name: str, alpha: float) -> nn.Module:
    """The authors' RoBERTa or DeBERTa with random pairs and a random head: loralib.Linear for query and value."""
    model = encoder(name)
    for parameter in (p for n, p in model.named_parameters() if not n.startswith(f"{name}.")):
        nn.init.normal_(parameter)
    for layer in getattr(model, name).encoder.layer:
        for projection in ("query", "value") if name == "roberta" else ("query_proj", "value_proj"):
            layer_type = OfficialQuery if projection == "query_proj" else loralib.Linear
            linear = layer_type(WIDTH, WIDTH, r=RANK, lora_alpha=alpha, merge_weights=False)
            linear.load_state_dict(getattr(layer.attention.self, projection).state_dict(), strict=False)
            nn.init.normal_(linear.lora_B, std=0.1)
            setattr(layer.attention.self, projection, linear)
    return model.eval()


def encoder_state_dict(model: nn.Module, name: str) -> dict[str, torch.Tensor]:
    head = {n: p for n, p in model.state_dict().items() if not n.startswith(f"{name}.")}
    return loralib.lora_state_dict(model) | head


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


def refused(file, match: str, model: nn.Module | None = None, **others) -> None:
    model = model or gpt2()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    with pytest.raises(ValueError, match=match):
        load_released_adapter(model, file, **{"alpha": 32, **others})
    assert not lora_layers(model)
    assert all(torch.equal(p, before[name]) for name, p in model.named_parameters())


@pytest.mark.parametrize("layout", ["plain", "as gpt2_ft.py saves it", "wrapped for several devices"])
def test_a_gpt2_file_gives_the_logits_of_the_authors_own_model(tmp_path, layout):
    theirs = loralib_gpt2()
    state = loralib.lora_state_dict(theirs)
    assert state["transformer.h.0.attn.c_attn.lora_A"].shape == (2 * RANK, WIDTH)
    assert state["transformer.h.0.attn.c_attn.lora_B"].shape == (2 * WIDTH, RANK)
    if layout == "wrapped for several devices":
        state = {f"module.{name}": tensor for name, tensor in state.items()}
    torch.save(state if layout == "plain" else {"model_state_dict": state}, tmp_path / "gpt2_lora_e2e.pt")
    ours = gpt2()
    names = load_released_adapter(ours, tmp_path / "gpt2_lora_e2e.pt", alpha=32)
    assert names == ["transformer.h.0.attn.c_attn", "transformer.h.1.attn.c_attn"]
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    assert not torch.allclose(logits(gpt2()), logits(theirs), atol=0.1)
    assert count_parameters(ours)[0] == sum(tensor.numel() for tensor in state.values())


def test_alpha_decides_what_a_file_computes(tmp_path):
    torch.save(loralib.lora_state_dict(loralib_gpt2(alpha=32)), tmp_path / "lora.pt")
    ours = gpt2()
    load_released_adapter(ours, tmp_path / "lora.pt", alpha=16)
    assert not torch.allclose(logits(ours), logits(loralib_gpt2(alpha=32)), atol=0.1)
    assert torch.allclose(logits(ours), logits(loralib_gpt2(alpha=16)), atol=1e-5)


@pytest.mark.parametrize(("name", "alpha"), [("roberta", 16), ("deberta", 32)])
def test_an_encoder_file_gives_the_logits_of_the_authors_own_model_with_its_head(tmp_path, name, alpha):
    theirs = loralib_encoder(name, alpha)
    state = encoder_state_dict(theirs, name)
    torch.save(state, tmp_path / "lora_mnli.bin")
    ours = encoder(name)
    load_released_adapter(ours, tmp_path / "lora_mnli.bin", alpha, rank=RANK)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    assert not torch.allclose(logits(encoder(name)), logits(theirs), atol=0.1)
    assert count_parameters(ours)[0] == sum(tensor.numel() for tensor in state.values())


def test_a_released_glue_run_scores_what_the_authors_own_model_answers(tmp_path, monkeypatch):
    theirs = loralib_encoder("roberta", 16)
    (tmp_path / "released").mkdir()
    torch.save(encoder_state_dict(theirs, "roberta"), tmp_path / "released/roberta_base_lora_mnli.bin")
    split = glue_data.GlueSplit([glue_data.Example((str(i), str(i + 1)), i % 3) for i in range(24)], False)
    rows = [{"input_ids": [i % 7 + 5, i % 11 + 5, 2], "label": i % 3} for i in range(24)]
    monkeypatch.setattr(execute, "load_model", lambda *_: encoder("roberta"))
    monkeypatch.setattr(execute, "load_tokenizer", lambda *_: type("Tokenizer", (), {"pad_token_id": 1}))
    monkeypatch.setattr(glue_data, "load_glue", lambda *_: split)
    monkeypatch.setattr(glue_data, "encode", lambda examples, *_: glue_data.Encoded(rows[: len(examples)], 0))
    chosen = replace(find("released/roberta-base/mnli").settings, rank=RANK)
    measured, predictions = execute.measure(Job(chosen, 0, tmp_path, tmp_path), tmp_path / "adapter")
    with torch.no_grad():
        expected = [theirs(torch.tensor([row["input_ids"]])).logits.argmax().item() for row in rows]
    assert len(set(expected)) > 1
    assert [p["prediction"] for p in predictions] == expected
    assert measured["scores"]["accuracy"] == sum(e == i % 3 for i, e in enumerate(expected)) / 24
    assert "scores_validation_mismatched" in measured and "honest_scores" not in measured
    assert measured["parameters"]["trainable"] == 2 * 2 * 2 * RANK * WIDTH


def test_every_table_2_row_of_lora_that_the_authors_released_is_declared():
    names = {f"released/{model}/{task}" for model in GLUE_MODELS for task in GLUE_TASKS}
    assert names <= EXPERIMENTS.keys()
    by_name = {name: EXPERIMENTS[name].settings for name in names}
    assert {(s.model, s.rank, s.alpha) for s in by_name.values()} == {
        ("roberta-base", 8, 16.0), ("roberta-large", 8, 16.0), ("deberta-v2-xxlarge", 16, 32.0)
    }  # fmt: skip
    assert not any(s.start_from for s in by_name.values())


def test_a_model_without_a_release_is_refused_and_a_file_is_looked_for_by_model_and_task(tmp_path):
    with pytest.raises(ValueError, match="released no adapter of 'minilm': expected one of gpt2-medium"):
        released_file("minilm", "mnli")
    (tmp_path / "released").mkdir()
    for model, task, name in (
        ("gpt2-large", "e2e", "gpt2_lg_lora_e2e.pt"),
        ("deberta-v2-xxlarge", "stsb", "deberta_v2_xxlarge_lora_stsb.bin"),
    ):
        (tmp_path / "released" / name).write_bytes(b"")
        assert released_file(model, task, tmp_path) == tmp_path / "released" / name


def test_a_file_with_pairs_of_another_rank_than_expected_is_refused(tmp_path):
    torch.save(loralib.lora_state_dict(loralib_gpt2()), tmp_path / "lora.pt")
    refused(tmp_path / "lora.pt", r"expected pairs of rank 8, found \[4\]", rank=8)
    load_released_adapter(gpt2(), tmp_path / "lora.pt", alpha=32, rank=RANK)


@pytest.mark.parametrize("enable", [(True, True, True), (True, False, False)])
def test_a_file_with_another_number_of_pairs_over_c_attn_is_refused(tmp_path, enable):
    torch.save(loralib.lora_state_dict(loralib_gpt2(enable=enable)), tmp_path / "lora.pt")
    refused(tmp_path / "lora.pt", r"is not for this GPT2LMHeadModel: expected .*c_attn.lora_A', 8, 16")


def test_a_file_for_a_deeper_or_wider_model_is_refused_by_name_and_shape(tmp_path):
    state = loralib.lora_state_dict(loralib_gpt2())
    extra = {name.replace("h.1", "h.2"): tensor for name, tensor in state.items()}
    torch.save(state | extra, tmp_path / "deeper.pt")
    refused(tmp_path / "deeper.pt", r"expected \[\], found \[\('transformer.h.2.attn.c_attn.lora_A', 8, 16\)")
    torch.save({n: t for n, t in state.items() if "h.1" not in n}, tmp_path / "shallower.pt")
    refused(tmp_path / "shallower.pt", r"expected \[\('transformer.h.1.attn.c_attn.lora_A', 8, 16\).*found \[\]")
    torch.save({n: t.repeat(1, 2) if "_A" in n else t.repeat(2, 1) for n, t in state.items()}, tmp_path / "wider.pt")
    refused(tmp_path / "wider.pt", r"c_attn.lora_A', 8, 16\).*found \[\('transformer.h.0.attn.c_attn.lora_A', 8, 32\)")


def test_an_encoder_file_without_its_head_or_with_another_head_is_refused(tmp_path):
    theirs = loralib_encoder("roberta", 16)
    torch.save(loralib.lora_state_dict(theirs), tmp_path / "headless.bin")
    refused(tmp_path / "headless.bin", r"expected \[\('classifier.dense.bias', 16\)", encoder("roberta"))
    torch.save(encoder_state_dict(theirs, "roberta"), tmp_path / "three_labels.bin")
    refused(tmp_path / "three_labels.bin", r"out_proj.bias', 2\).*out_proj.bias', 3\)", encoder("roberta", labels=2))
    refused(tmp_path / "three_labels.bin", "is not for this RobertaModel", RobertaModel(encoder("roberta").config))


class Boom:
    def __reduce__(self):
        return (pytest.fail, ("the pickle was run",))


@pytest.mark.parametrize(
    "content", [pickle.dumps(Boom(), protocol=2), b"", b"not a file of torch"], ids=["code", "empty", "text"]
)
def test_a_file_that_is_no_state_dict_is_refused_and_nothing_in_it_is_run(tmp_path, content):
    (tmp_path / "lora.pt").write_bytes(content)
    refused(tmp_path / "lora.pt", "expected a state dict of tensors alone.*download it again")


def test_code_inside_a_file_of_torch_is_not_run(tmp_path):
    torch.save({"model_state_dict": Boom()}, tmp_path / "lora.pt")
    refused(tmp_path / "lora.pt", "expected a state dict of tensors alone")


def test_a_truncated_or_absent_file_is_refused(tmp_path):
    torch.save(loralib.lora_state_dict(loralib_gpt2()), tmp_path / "lora.pt")
    whole = (tmp_path / "lora.pt").read_bytes()
    (tmp_path / "lora.pt").write_bytes(whole[: len(whole) // 2])
    refused(tmp_path / "lora.pt", "expected a state dict of tensors alone.*download it again")
    refused(tmp_path / "absent.pt", "expected a state dict of tensors alone.*No such file")


def test_one_changed_bit_of_a_weight_is_noticed(tmp_path):
    state = loralib.lora_state_dict(loralib_gpt2())
    torch.save(state, tmp_path / "lora.pt")
    [first, *_] = state.values()
    whole, weights = (tmp_path / "lora.pt").read_bytes(), first.numpy().tobytes()
    start = whole.index(weights)
    (tmp_path / "lora.pt").write_bytes(whole[:start] + bytes([whole[start] ^ 1]) + whole[start + 1 :])
    assert not torch.equal(torch.load(tmp_path / "lora.pt")[next(iter(state))], first)  # torch itself does not
    refused(tmp_path / "lora.pt", "found ValueError: another checksum of lora/data/0; download it again")


NAME = "transformer.h.0.attn.c_attn.lora_A"
NO_MATRIX = {
    "float8": lambda A: {NAME: A.to(torch.float8_e4m3fn)},
    "sparse": lambda A: {NAME: A.to_sparse()},
    "one dimension": lambda A: {NAME: A.flatten()},
    "twice": lambda A: {f"module.{NAME}": A + 1},
}


@pytest.mark.parametrize("change", NO_MATRIX)
def test_a_tensor_that_is_no_plain_matrix_or_there_twice_is_refused(tmp_path, change):
    state = loralib.lora_state_dict(loralib_gpt2())
    torch.save(state | NO_MATRIX[change](state[NAME]), tmp_path / "lora.pt")
    refused(tmp_path / "lora.pt", f"expected (matrices of finite numbers|each tensor once) in .*found {NAME}")


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
def test_a_pipe_is_refused_and_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "lora.pt")
    refused(tmp_path / "lora.pt", "expected a state dict of tensors alone in .*No such file")


@pytest.mark.parametrize(
    "content", [gpt2().state_dict(), {"epoch": 3}, [1, 2], {"a.lora_A": 1}, {"model_state_dict": [1]}]
)
def test_a_file_without_pairs_is_refused(tmp_path, content):
    torch.save(content, tmp_path / "lora.pt")
    refused(tmp_path / "lora.pt", "expected lora_A and lora_B tensors by name")


# --- DeBERTa's positions, while training ------------------------------------------------------------------------------


def official_settings(frozen: bool) -> Settings:
    changes = {"frozen_positions": frozen, "rank": RANK, "alpha": 32.0, "targets": ("query", "value")}
    return settings("lora", "deberta-v2", **changes)


def adapted_as(theirs: nn.Module, frozen: bool) -> nn.Module:
    """Our DeBERTa, adapted by the method, with the head and the pairs of `theirs`."""
    ours = encoder("deberta")
    apply_method(ours, official_settings(frozen))
    ours.load_state_dict(encoder_state_dict(theirs, "deberta"), strict=False)
    return ours


def gradients_of(model: nn.Module) -> dict[str, torch.Tensor]:
    model(TOKENS, labels=torch.tensor([0, 2])).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if ".lora_" in name}


def apart(ours: nn.Module, theirs: nn.Module) -> float:
    """The largest difference of the gradients of the pairs."""
    pairs = gradients_of(theirs)
    return max((gradient - pairs[name]).abs().max().item() for name, gradient in gradients_of(ours).items())


def test_with_frozen_positions_a_training_step_is_the_authors_own():
    theirs = loralib_encoder("deberta", 32)
    assert torch.allclose(logits(adapted_as(theirs, True)), logits(theirs), atol=1e-5)
    assert apart(adapted_as(theirs, True), theirs) < 1e-4
    theirs.zero_grad()
    assert apart(adapted_as(theirs, False), theirs) > 1e-2  # as transformers has it


@pytest.mark.filterwarnings("ignore:`gradient_checkpointing_enable` is deprecated:FutureWarning")
def test_a_step_that_recomputes_its_forward_pass_has_frozen_positions_too():
    theirs = loralib_encoder("deberta", 32)
    ours = adapted_as(theirs, True).train()
    for module in ours.modules():
        module.p = 0.0  # of dropout
    ours.gradient_checkpointing_enable({"use_reentrant": False})
    assert apart(ours, theirs) < 1e-4


def test_pairs_beside_frozen_positions_are_saved_and_loaded_with_them_and_not_as_plain_lora(tmp_path):
    ours = adapted_as(loralib_encoder("deberta", 32), True)
    save_adapter(ours, official_settings(True), tmp_path)
    loaded = encoder("deberta")
    load_adapter(loaded, tmp_path)
    assert torch.equal(logits(loaded), logits(ours))
    for refused_by in (partial(save_lora, ours, tmp_path / "plain"), partial(merge_lora, ours)):
        with pytest.raises(ValueError, match="neither merged nor saved: DeBERTa's positions"):
            refused_by()


def test_pairs_that_come_after_frozen_ones_were_removed_are_for_positions_too():
    model = adapted_as(loralib_encoder("deberta", 32), True)
    remove_lora(model)
    add_lora(model, LoRAConfig(RANK))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B)
    before = logits(model)
    merge_lora(model)
    assert torch.allclose(logits(model), before, atol=1e-5)


def test_frozen_positions_of_a_model_that_projects_none_are_refused():
    with pytest.raises(ValueError, match="frozen_positions is of DeBERTa's attention, found RobertaForSequence"):
        apply_method(encoder("roberta"), official_settings(True))


def test_the_official_code_holds_nothing_out_and_freezes_deberta_xxls_positions_and_the_papers_variant_neither():
    rows = [e for e in EXPERIMENTS.values() if e.table == "table2" and e.settings.method == "lora"]
    for e in rows:
        official, xxl = e.variant == OFFICIAL, e.settings.model == "deberta-v2-xxlarge"
        assert (e.settings.hold_out, e.settings.frozen_positions) == (not official, official and xxl), e.name
    assert {e.variant for e in rows if e.settings.model == "deberta-v2-xxlarge"} == {"paper", OFFICIAL}
