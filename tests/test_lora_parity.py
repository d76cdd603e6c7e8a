"""LoRA layers against the two implementations that people use: the authors' loralib 0.1.2 and PEFT. With the same
weights in both they have to give the same numbers, forwards and backwards, and each other's files have to load."""

from __future__ import annotations

import json
from dataclasses import replace

import loralib
import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from peft.optimizers import create_loraplus_optimizer
from torch import nn
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    DebertaV2Config,
    DebertaV2ForSequenceClassification,
    GPT2Config,
    GPT2LMHeadModel,
    RobertaConfig,
    RobertaForSequenceClassification,
)
from transformers.pytorch_utils import Conv1D

from adapter_files import load_lora, save_lora
from experiments.settings import Settings
from lora import LoRAConfig, LoRALinear, add_lora, lora_layers
from methods.catalogue import apply_method
from training.optimizer import parameter_groups

# PEFT asks transformers for a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
WIDTH, RANK, ALPHA = 16, 4, 32.0
TOKENS = torch.arange(12).reshape(2, 6)


def gpt2() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    no_dropout = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    shape = {"n_layer": 2, "n_embd": WIDTH, "n_head": 2, "vocab_size": 24, "n_positions": 8, "initializer_range": 0.3}
    return GPT2LMHeadModel(GPT2Config(**shape, **no_dropout, bos_token_id=0, eos_token_id=0)).eval()


def encoder(name: str = "bert") -> nn.Module:
    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 2 * WIDTH}
    model_class, config_class = {
        "bert": (BertForSequenceClassification, BertConfig),
        "roberta": (RobertaForSequenceClassification, RobertaConfig),
        "deberta": (DebertaV2ForSequenceClassification, DebertaV2Config),
    }[name]
    return model_class(config_class(**shape, vocab_size=24, max_position_embeddings=16, initializer_range=0.3)).eval()


def randomise(model: nn.Module) -> nn.Module:
    """Pairs as if they had been trained: every A and B random."""
    torch.manual_seed(7)
    for name, parameter in model.named_parameters():
        if "lora_" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(TOKENS).logits


# loralib ----------------------------------------------------------------------------------------------------------


def loralib_linear(rank: int = RANK, alpha: float = ALPHA) -> tuple[LoRALinear, nn.Module]:
    theirs = loralib.Linear(WIDTH, 2 * WIDTH, r=rank, lora_alpha=alpha, merge_weights=False)
    base = nn.Linear(WIDTH, 2 * WIDTH)
    base.load_state_dict({"weight": theirs.weight, "bias": theirs.bias})
    return LoRALinear(base, ("query",), LoRAConfig(rank, ALPHA, targets=("query",))), theirs


def loralib_c_attn(rank: int = RANK, alpha: float = ALPHA, enable=(True, False, True)) -> tuple[LoRALinear, nn.Module]:
    settings = {"r": rank, "lora_alpha": alpha, "fan_in_fan_out": True, "merge_weights": False}
    theirs = loralib.MergedLinear(WIDTH, 3 * WIDTH, enable_lora=list(enable), **settings)
    base = Conv1D(3 * WIDTH, WIDTH)
    base.load_state_dict({"weight": theirs.weight, "bias": theirs.bias})
    return LoRALinear(base, ("query", "key", "value"), LoRAConfig(rank, ALPHA)), theirs


def results(layer: nn.Module, ours: LoRALinear) -> list[torch.Tensor]:
    """Output, and gradients of input, A and B, of a layer that is given our pairs."""
    layer.load_state_dict({"lora_A": ours.lora_A, "lora_B": ours.lora_B}, strict=False)
    for parameter in (layer.weight, layer.bias) if layer is not ours else ours.base_layer.parameters():
        parameter.requires_grad_(False)
    torch.manual_seed(3)
    x, direction = torch.randn(2, 5, WIDTH, requires_grad=True), torch.randn(layer(torch.zeros(WIDTH)).shape)
    output = layer(x)
    (output * direction).sum().backward()
    return [output.detach(), x.grad, layer.lora_A.grad, layer.lora_B.grad]


def equal(ours: LoRALinear, theirs: nn.Module) -> list[bool]:
    pairs = zip(results(ours, ours), results(theirs, ours), strict=True)
    return [a.abs().max() > 0.01 and torch.allclose(a, b, rtol=1e-5, atol=1e-5) for a, b in pairs]


@pytest.mark.parametrize("make", [loralib_linear, loralib_c_attn])
@pytest.mark.parametrize("rank", [1, 4, 8])
def test_output_and_gradients_equal_those_of_loralib(make, rank):
    torch.manual_seed(0)
    ours, theirs = make(rank)
    assert equal(randomise(ours), theirs) == [True] * 4


@pytest.mark.parametrize("make", [loralib_linear, loralib_c_attn])
def test_another_scale_than_loralibs_would_be_noticed(make):
    torch.manual_seed(0)
    ours, theirs = make(alpha=1.1 * ALPHA)
    assert equal(randomise(ours), theirs) == [False] * 4


def test_pairs_on_other_thirds_than_loralibs_would_be_noticed():
    torch.manual_seed(0)
    ours, theirs = loralib_c_attn(enable=(True, True, False))
    assert not any(equal(randomise(ours), theirs))


def loralib_gpt2(adapted: GPT2LMHeadModel, alpha: float = ALPHA) -> GPT2LMHeadModel:
    """The same tiny GPT-2 with the authors' layer as every c_attn, starting from our pairs."""
    model = gpt2()
    for block, ours in zip(model.transformer.h, lora_layers(adapted).values(), strict=True):
        settings = {"r": RANK, "lora_alpha": alpha, "fan_in_fan_out": True, "merge_weights": False}
        theirs = loralib.MergedLinear(WIDTH, 3 * WIDTH, enable_lora=[True, False, True], **settings)
        pairs = {"lora_A": ours.lora_A, "lora_B": ours.lora_B}
        theirs.load_state_dict({"weight": block.attn.c_attn.weight, "bias": block.attn.c_attn.bias, **pairs})
        block.attn.c_attn = theirs
    loralib.mark_only_lora_as_trainable(model)
    return model


def losses(model: nn.Module, steps: int = 20) -> torch.Tensor:
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=0.01, weight_decay=0.01)
    torch.manual_seed(5)
    batches, values = torch.randint(0, 24, (4, 8, 8)), []
    for step in range(steps):
        loss = model(batches[step % 4], labels=batches[step % 4]).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        values.append(loss.item())
    return torch.tensor(values)


def test_twenty_training_steps_follow_loralibs_losses():
    model = gpt2()
    add_lora(model, LoRAConfig(RANK, ALPHA))
    theirs, other_scale = losses(loralib_gpt2(model)), losses(loralib_gpt2(model, alpha=1.1 * ALPHA))
    ours = losses(model)
    assert ours[-4:].mean() < ours[:4].mean() - 0.1  # it does learn
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    assert not torch.allclose(ours, other_scale, rtol=0, atol=1e-4)


# PEFT -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "targets",
    [("query", "value"), ("key",), ("query", "key", "value", "output", "mlp_in", "mlp_out"), ("value", "mlp_out")],
    ids=", ".join,
)
def test_peft_computes_the_same_from_our_folder_for_gpt2(tmp_path, targets):
    model = gpt2()
    add_lora(model, LoRAConfig(rank=3, alpha=10.0, targets=targets))
    save_lora(randomise(model), tmp_path)
    theirs = PeftModel.from_pretrained(gpt2(), tmp_path).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    assert not torch.allclose(logits(gpt2()), logits(model), atol=1e-2)


def test_our_pairs_over_c_attn_are_one_pair_of_twice_the_rank_for_peft_and_ours_again_when_loaded(tmp_path):
    model = gpt2()
    add_lora(model, LoRAConfig(RANK, ALPHA))
    save_lora(randomise(model), tmp_path)
    theirs = PeftModel.from_pretrained(gpt2(), tmp_path).base_model.model.transformer.h[0].attn.c_attn
    A, B = theirs.lora_A["default"].weight, theirs.lora_B["default"].weight
    assert A.shape == (2 * RANK, WIDTH)
    assert theirs.scaling["default"] == ALPHA / RANK
    query, key, value = B.split(WIDTH)
    assert query[:, :RANK].all() and not query[:, RANK:].any()
    assert not key.any()
    assert value[:, RANK:].all() and not value[:, :RANK].any()
    loaded = gpt2()
    load_lora(loaded, tmp_path)
    assert loaded.transformer.h[0].attn.c_attn.lora_B.shape == (2 * WIDTH, RANK)


@pytest.mark.parametrize("name", ["bert", "roberta", "deberta"])
def test_peft_computes_the_same_from_our_folder_with_a_trained_head(tmp_path, name):
    model = encoder(name)
    add_lora(model, LoRAConfig(RANK, ALPHA, targets=("query", "value", "output", "mlp_out")))
    for parameter in (p for n, p in model.named_parameters() if not n.startswith(f"{name}.")):
        nn.init.normal_(parameter.requires_grad_(True))  # the classifier, and DeBERTa's pooler
    save_lora(randomise(model), tmp_path)
    theirs = PeftModel.from_pretrained(encoder(name), tmp_path).eval()
    assert torch.allclose(logits(theirs), logits(model), atol=1e-5)
    assert not torch.allclose(logits(encoder(name)), logits(model), atol=1e-2)


VARIANT = Settings(
    task="e2e", model="any", method="lora", learning_rate=1e-3, epochs=1, batch_size=1, rank=RANK, alpha=ALPHA,
    targets=("query", "value"), train_head=False,
)  # fmt: skip
ALIKE = {  # where a pair of ours is one of PEFT's: over all of c_attn, and for each of BERT's matrices
    "gpt2": (gpt2, {"packed_pair": True}, {"target_modules": ["c_attn"], "fan_in_fan_out": True}),
    "bert": (encoder, {"task": "mrpc"}, {"target_modules": ["query", "value"]}),
}


def ours_and_pefts(family: str, ours: dict, theirs: dict) -> tuple[nn.Module, nn.Module, dict[str, str]]:
    """A model of ours and PEFT's, each with its variant of LoRA and the same random pairs; our names -> PEFT's."""
    build, as_pefts, as_ours = ALIKE[family]
    model = build()
    apply_method(model, replace(VARIANT, **as_pefts, **ours))
    pefts = get_peft_model(build(), LoraConfig(r=RANK, lora_alpha=ALPHA, **as_ours, **theirs)).eval()
    names = {n: f"base_model.model.{n}.default.weight" for n, _ in model.named_parameters() if ".lora_" in n}
    for name, parameter in randomise(model).named_parameters():
        if name in names:
            pefts.get_parameter(names[name]).data.copy_(parameter)
    return model, pefts, names


@pytest.mark.parametrize("family", ALIKE)
def test_rank_stabilised_logits_and_gradients_are_pefts(family):
    ours, theirs, names = ours_and_pefts(family, {"rank_stabilised": True}, {"use_rslora": True})
    for model in (ours, theirs):
        model(TOKENS).logits.square().sum().backward()
    assert torch.allclose(logits(ours), logits(theirs), rtol=1e-4, atol=1e-5)
    for name, pefts in names.items():
        gradient = ours.get_parameter(name).grad
        assert gradient.any() and torch.allclose(gradient, theirs.get_parameter(pefts).grad, rtol=1e-4, atol=1e-4)
    plain, *_ = ours_and_pefts(family, {}, {})
    assert not torch.allclose(logits(plain), logits(theirs), atol=1e-2)  # the other scale would be noticed


@pytest.mark.parametrize("family", ALIKE)
def test_with_lora_plus_every_matrix_has_the_learning_rate_that_peft_gives_it(family):
    model, pefts, names = ours_and_pefts(family, {}, {})
    theirs = create_loraplus_optimizer(pefts, torch.optim.AdamW, lr=1e-3, loraplus_lr_ratio=16.0)

    def rates(model: nn.Module, groups: list[dict]) -> dict[str, float]:
        by_parameter = {p: group["lr"] for group in groups for p in group["params"]}
        return {name: by_parameter[p] for name, p in model.named_parameters() if p in by_parameter}

    ours = rates(model, parameter_groups(model, replace(VARIANT, b_learning_rate_ratio=16.0), (), {}))
    assert {names[name]: rate for name, rate in ours.items()} == rates(pefts, theirs.param_groups)
    assert set(ours.values()) == {1e-3, 16e-3}


def peft_folder(folder, model, **settings):
    """What PEFT writes for an adapter of its own with random pairs; returns the PEFT model."""
    theirs = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=8, lora_dropout=0.1, **settings)).eval()
    randomise(theirs).save_pretrained(folder)
    return theirs


def test_an_adapter_that_peft_made_on_berts_query_and_value_loads_here_with_its_head(tmp_path):
    theirs = peft_folder(tmp_path, encoder(), target_modules=["query", "value"], task_type="SEQ_CLS")
    with torch.no_grad():
        theirs.base_model.model.classifier.modules_to_save["default"].weight.normal_()
    theirs.save_pretrained(tmp_path)
    ours = encoder()
    names = load_lora(ours, tmp_path)
    assert names == [f"bert.encoder.layer.{i}.attention.self.{p}" for i in (0, 1) for p in ("query", "value")]
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    assert not torch.allclose(logits(ours), logits(encoder()), atol=1e-2)
    layer = lora_layers(ours)[names[0]]
    assert (layer.config.rank, layer.config.alpha, layer.config.dropout) == (RANK, 8, 0.1)
    assert layer.config.targets == ("query", "value")
    assert {n for n, p in ours.named_parameters() if p.requires_grad and "lora_" not in n} == {
        "classifier.weight",
        "classifier.bias",
    }


@pytest.mark.parametrize(
    "settings",
    [{"use_rslora": True}, {"use_dora": True}, {"alpha_pattern": {"query": 16}}, {"rank_pattern": {"query": 2}}],
    ids=str,
)
def test_a_peft_adapter_with_another_scale_or_rank_somewhere_is_refused(tmp_path, settings):
    peft_folder(tmp_path, encoder(), target_modules=["query", "value"], **settings)
    with pytest.raises(ValueError, match=f"expected plain LoRA .*, found .*{next(iter(settings))}"):
        load_lora(encoder(), tmp_path)


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_a_peft_adapter_whose_start_changed_the_base_is_refused(tmp_path, init):
    peft_folder(tmp_path, encoder(), target_modules=["query", "value"], init_lora_weights=init)
    with pytest.raises(ValueError, match=f"expected plain LoRA in .*, found LORA with .*{init}"):
        load_lora(encoder(), tmp_path)


@pytest.mark.parametrize("init", [True, False, "gaussian"])
def test_a_peft_adapter_whose_start_left_the_base_alone_loads(tmp_path, init):
    theirs = peft_folder(tmp_path, encoder(), target_modules=["query", "value"], init_lora_weights=init)
    ours = encoder()
    load_lora(ours, tmp_path)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)


@pytest.mark.parametrize("settings", [{"trainable_token_indices": [1]}, {"layers_to_transform": [0]}], ids=str)
def test_a_peft_adapter_of_more_or_fewer_tensors_is_refused(tmp_path, settings):
    peft_folder(tmp_path, encoder(), target_modules=["query", "value"], **settings)
    with pytest.raises(ValueError, match="is not for this BertForSequenceClassification"):
        load_lora(encoder(), tmp_path)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_a_peft_adapter_with_trained_biases_loads_with_them(tmp_path, bias):
    theirs = peft_folder(tmp_path, encoder(), target_modules=["query", "value"], bias=bias)
    for name, parameter in theirs.named_parameters():
        if name.endswith("query.base_layer.bias"):
            parameter.data += 0.3
    theirs.save_pretrained(tmp_path)
    ours = encoder()
    load_lora(ours, tmp_path)
    assert torch.allclose(logits(ours), logits(theirs), atol=1e-5)
    trained = {name for name, parameter in ours.named_parameters() if parameter.requires_grad and "lora_" not in name}
    assert trained and all(name.endswith("bias") for name in trained)


def test_pefts_one_pair_over_all_of_c_attn_is_refused_since_it_adapts_the_key_too(tmp_path):
    peft_folder(tmp_path, gpt2(), target_modules=["c_attn"], fan_in_fan_out=True)
    with pytest.raises(ValueError, match=r"expected plain LoRA of one rank .*found .* empty for query, key, value"):
        load_lora(gpt2(), tmp_path)


def test_a_folder_of_another_method_is_refused(tmp_path):
    peft_folder(tmp_path, encoder(), target_modules=["query", "value"])
    file = tmp_path / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"peft_type": "LOHA"}))
    with pytest.raises(ValueError, match=r"expected plain LoRA in .*, found LOHA"):
        load_lora(encoder(), tmp_path)
