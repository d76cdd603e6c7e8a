"""Adapters and prefixes against what others compute from the same weights: the papers' formulas written out below,
PEFT for prefixes, and AdapterHub for adapters (slow: in an environment of its own, see adapterhub_reference.py)."""

from __future__ import annotations

import copy
import json
import os
import subprocess
import sys
import venv
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
import transformers
from peft import PrefixTuningConfig, PromptTuningConfig, get_peft_model
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from families import FAMILIES, layers
from files import ROOT
from methods.adapters import KINDS, Adapter, add_adapters
from methods.prefixes import PreEmbed, PreLayer, _hand_over, add_prefix

# PEFT asks transformers for a property that transformers 5.23 has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
LAYERS, WIDTH, BOTTLENECK = 3, 16, 4
TOKENS = torch.arange(3, 15).reshape(2, 6)
GPT2 = {"vocab_size": 24, "n_layer": LAYERS, "n_embd": WIDTH, "n_head": 2, "n_positions": 16, "bos_token_id": 0,
        "eos_token_id": 0, "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}  # fmt: skip
ENCODER = {"vocab_size": 24, "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 2,
           "intermediate_size": 24, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}  # fmt: skip
LLAMA = {"vocab_size": 24, "num_hidden_layers": LAYERS, "hidden_size": WIDTH, "num_attention_heads": 4,
         "num_key_value_heads": 2, "intermediate_size": 24, "max_position_embeddings": 16}  # fmt: skip
SHAPES = {"gpt2": GPT2, "llama": LLAMA, "bert": ENCODER, "roberta": ENCODER, "deberta-v2": ENCODER}
ENCODERS = ("bert", "roberta", "deberta-v2")
CASES = [(kind, family) for kind in KINDS for family in (ENCODERS if kind == "pfeiffer" else FAMILIES)]


def tiny(family: str = "gpt2") -> nn.Module:
    torch.manual_seed(0)
    config, model = (getattr(transformers, name) for name in (FAMILIES[family].config, FAMILIES[family].model))
    return model(config(**SHAPES[family], initializer_range=0.3)).eval()


def adapted(kind: str, family: str, dropped_layers: int = 0) -> nn.Module:
    """With adapters as if they had been trained: every weight random."""
    model = tiny(family)
    add_adapters(model, kind, BOTTLENECK, dropped_layers)
    return randomise(model)


def randomise(model: nn.Module) -> nn.Module:
    torch.manual_seed(7)
    for parameter in trained(model).values():
        nn.init.normal_(parameter, std=0.5)
    return model


def trained(model: nn.Module) -> dict[str, nn.Parameter]:
    return {name: p for name, p in model.named_parameters() if p.requires_grad}


# The papers' formulas ---------------------------------------------------------------------------------------------


def bottleneck(x: Tensor, weights: dict[str, Tensor], kind: str, activation=None) -> Tensor:
    """What an adapter adds: Houlsby et al. 2019 have a swish in the official code, the others a ReLU."""
    if kind == "lin":
        centred = x - x.mean(dim=-1, keepdim=True)
        x = centred / (centred.square().mean(dim=-1, keepdim=True) + 1e-5).sqrt()
        x = x * weights["norm.weight"] + weights["norm.bias"]
    low = x @ weights["down.weight"].T + weights["down.bias"]
    low = (activation or {"houlsby": lambda z: z * z.sigmoid()}.get(kind, lambda z: z.clamp(min=0)))(low)
    return low @ weights["up.weight"].T + weights["up.bias"]


def gpt2_layer(plain: nn.Module, x: Tensor, kind: str, adapters: list[dict[str, Tensor]], **options) -> Tensor:
    """A block of GPT-2 with its adapters, from a plain block's parts."""
    attention = plain.attn(plain.ln_1(x))[0]
    if kind == "houlsby":
        attention = attention + bottleneck(attention, adapters[0], kind, **options)
    x = x + attention
    feed_forward = plain.mlp(plain.ln_2(x))
    if kind == "houlsby":
        feed_forward = feed_forward + bottleneck(feed_forward, adapters[1], kind, **options)
    x = x + feed_forward
    return x + bottleneck(x, adapters[0], kind, **options) if kind == "lin" else x


def llama_layer(plain: nn.Module, x: Tensor, kind: str, adapters: list[dict[str, Tensor]], **options) -> Tensor:
    """A block of Llama with its adapters, from a plain block's parts."""
    attention = plain.self_attn(plain.input_layernorm(x), rotation())[0]
    if kind == "houlsby":
        attention = attention + bottleneck(attention, adapters[0], kind, **options)
    x = x + attention
    feed_forward = plain.mlp(plain.post_attention_layernorm(x))
    if kind == "houlsby":
        feed_forward = feed_forward + bottleneck(feed_forward, adapters[1], kind, **options)
    x = x + feed_forward
    return x + bottleneck(x, adapters[0], kind, **options) if kind == "lin" else x


def rotation() -> tuple[Tensor, Tensor]:
    """Cosine and sine of the six positions, which Llama hands to each of its layers."""
    return tiny("llama").model.rotary_emb(torch.zeros(1), torch.arange(6)[None])


def encoder_layer(plain: nn.Module, x: Tensor, kind: str, adapters: list[dict[str, Tensor]], **options) -> Tensor:
    """A layer of BERT, RoBERTa or DeBERTa with its adapters, from a plain layer's parts, self-attention left out."""
    after, output = plain.attention.output, plain.output
    attention = after.dropout(after.dense(x))
    if kind == "houlsby":
        attention = attention + bottleneck(attention, adapters[0], kind, **options)
    x = after.LayerNorm(attention + x)
    feed_forward = output.dropout(output.dense(plain.intermediate(x)))
    if kind == "houlsby":
        feed_forward = feed_forward + bottleneck(feed_forward, adapters[1], kind, **options)
    elif kind == "pfeiffer":
        normed = output.LayerNorm(feed_forward + x)
        feed_forward = bottleneck(normed, adapters[0], kind, **options) + feed_forward
    x = output.LayerNorm(feed_forward + x)
    return x + bottleneck(x, adapters[0], kind, **options) if kind == "lin" else x


def our_layer(layer: nn.Module, x: Tensor) -> Tensor:
    """The same layer as those above, with our hooks at work."""
    if hasattr(layer, "self_attn"):
        return layer(x, position_embeddings=rotation())
    if hasattr(layer, "mlp"):
        return layer(x)
    x = layer.attention.output(x, x)
    return layer.output(layer.intermediate(x), x)


def compared(kind: str, family: str, dropout: float = 0.0, **options) -> list[bool]:
    """Whether output, gradient of the input and of every weight are equal, from a layer of ours and by the formula."""
    layer = layers(adapted(kind, family))[1].train()
    plain = copy.deepcopy(layers(tiny(family))[1]).requires_grad_(False).train()
    for module in (*layer.modules(), *plain.modules()):
        if isinstance(module, nn.Dropout):
            module.p = dropout
    weights = [
        {name: p.detach().clone().requires_grad_(True) for name, p in adapter.named_parameters()}
        for adapter in layer.adapters
    ]
    torch.manual_seed(3)
    x, direction = torch.randn(2, 6, WIDTH), torch.randn(2, 6, WIDTH)
    inputs = [x.clone().requires_grad_(True) for _ in range(2)]
    formula = {"gpt2": gpt2_layer, "llama": llama_layer}.get(family, encoder_layer)
    torch.manual_seed(4)
    outputs = [our_layer(layer, inputs[0])]
    torch.manual_seed(4)  # the same is dropped again
    outputs.append(formula(plain, inputs[1], kind, weights, **options))
    for output in outputs:
        (output * direction).sum().backward()
    ours = [outputs[0], inputs[0].grad, *(p.grad for adapter in layer.adapters for p in adapter.parameters())]
    theirs = [outputs[1], inputs[1].grad, *(p.grad for adapter in weights for p in adapter.values())]
    return [
        a.abs().max() > 0.01 and torch.allclose(a, b, rtol=1e-4, atol=1e-4) for a, b in zip(ours, theirs, strict=True)
    ]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_output_and_gradients_of_a_layer_are_those_of_the_papers_formula(kind, family):
    found = compared(kind, family)
    assert found == [True] * len(found)
    assert len(found) == 2 + {"houlsby": 8, "lin": 6, "pfeiffer": 4}[kind]


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_an_adapter_reads_what_dropout_leaves_and_nothing_that_it_adds_is_dropped(kind, family):
    found = compared(kind, family, dropout=0.5)
    assert found == [True] * len(found)


@pytest.mark.parametrize("family", ["gpt2", "bert"])
def test_an_adapter_before_dropout_would_be_noticed(family, monkeypatch):
    before = {"gpt2": ("attn.c_proj", "mlp.c_proj"), "bert": ("attention.output.dense", "output.dense")}[family]
    ends = dict(zip(("attention_end", "mlp_end"), before, strict=True))
    monkeypatch.setitem(FAMILIES, family, replace(FAMILIES[family], **ends))
    assert all(compared("houlsby", family))
    assert not any(compared("houlsby", family, dropout=0.5)[:2])


@pytest.mark.parametrize(("kind", "family"), CASES)
def test_another_activation_than_the_formulas_would_be_noticed(kind, family):
    assert not any(compared(kind, family, activation=F.gelu)[:2])


@pytest.mark.parametrize("family", ENCODERS)
def test_an_adapter_that_does_not_read_the_layer_norms_output_would_be_noticed(family, monkeypatch):
    monkeypatch.setattr(Adapter, "before_norm", lambda adapter, _, inputs: inputs[0] + adapter(inputs[0]))
    assert not any(compared("pfeiffer", family)[:2])


@pytest.mark.parametrize("family", FAMILIES)
def test_an_adapter_without_its_residual_would_be_noticed(family, monkeypatch):
    monkeypatch.setattr(Adapter, "after", lambda adapter, part, inputs, output: adapter(output))
    assert not any(compared("houlsby", family)[:2])


# PEFT -------------------------------------------------------------------------------------------------------------


def pefts_and_our_gradients(model: nn.Module, theirs: nn.Module, of_prefix) -> list[Tensor]:
    """Logits of ours and of PEFT's, and the gradient of our prefix: by our own way, and through PEFT's weight."""
    ours = next(model.transformer.prefix.parameters())
    learnt = next(p for p in theirs.parameters() if p.requires_grad)
    with torch.no_grad():
        learnt.copy_(of_prefix(model))
    mask = torch.ones_like(TOKENS)
    outputs = [model(TOKENS).logits, theirs(input_ids=TOKENS, attention_mask=mask).logits[:, -TOKENS.shape[1] :]]
    outputs[0].square().sum().backward()
    outputs[1].square().sum().backward()
    own, ours.grad = ours.grad, None
    of_prefix(model).backward(learnt.grad)
    return [*outputs, own, ours.grad]


def with_prefix(kind: type) -> nn.Module:
    model = tiny()
    add_prefix(model, kind, 4)
    return randomise(model)


def test_preembed_is_pefts_prompt_tuning():
    settings = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    found = pefts_and_our_gradients(
        with_prefix(PreEmbed), get_peft_model(tiny(), settings), lambda model: model.transformer.prefix.embeddings
    )
    for ours, theirs in zip(found[::2], found[1::2], strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4) and ours.abs().max() > 0.01


def keys_and_values(model: nn.Module) -> Tensor:
    """As PEFT has them, (tokens, layers * 2 * d): what our activations become in each layer."""
    pairs = _hand_over(model.transformer, (TOKENS,), {})[1]["prefix"]
    return torch.cat([part[0].transpose(0, 1).flatten(1) for pair in pairs for part in pair], dim=1)


def test_prelayer_is_pefts_prefix_tuning_with_the_keys_and_values_of_our_activations():
    settings = PrefixTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
    logits, their_logits, own, theirs = pefts_and_our_gradients(
        with_prefix(PreLayer), get_peft_model(tiny(), settings), keys_and_values
    )
    assert torch.allclose(logits, their_logits, rtol=1e-4, atol=1e-4)
    assert torch.allclose(own, theirs, rtol=1e-4, atol=1e-4) and own.abs().max() > 0.01


def test_a_prefix_whose_input_had_the_first_positions_would_be_noticed():
    model = with_prefix(PreLayer)
    before = model(TOKENS).logits
    from_the_first = torch.arange(TOKENS.shape[1])[None]
    assert torch.allclose(model(TOKENS, position_ids=from_the_first).logits, before)  # its own, behind the prefix
    assert not torch.allclose(model(TOKENS, position_ids=from_the_first - 4).logits, before, rtol=1e-4, atol=1e-2)


# AdapterHub -------------------------------------------------------------------------------------------------------

ENVIRONMENT, REQUIREMENTS = ROOT / ".venv" / "adapterhub", ROOT / "tests" / "requirements-adapters.txt"
HUB_CASES = [(kind, family, dropped) for kind, family in CASES if family != "llama" for dropped in (0, 2)]


@pytest.fixture(scope="session")
def adapterhub() -> str:
    """The interpreter of an environment with AdapterHub's package, which needs another transformers; built once."""
    python, done = ENVIRONMENT / "bin" / "python", ENVIRONMENT / REQUIREMENTS.name
    if not done.exists() or done.read_text() != REQUIREMENTS.read_text():
        venv.create(ENVIRONMENT, clear=True, with_pip=True)
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", REQUIREMENTS], check=True)
        done.write_text(REQUIREMENTS.read_text())
    return str(python)


@pytest.fixture(scope="session")
def adapterhub_results(adapterhub, tmp_path_factory) -> dict[tuple, dict[str, Tensor]]:
    """Logits and gradients that AdapterHub computes from the weights of each of our models."""
    folder, cases = tmp_path_factory.mktemp("adapterhub"), []
    for number, (kind, family, dropped) in enumerate(HUB_CASES):
        model = adapted(kind, family, dropped)
        config = {"model_type": family} | SHAPES[family]
        save_file({name: p.detach().clone() for name, p in model.named_parameters()}, folder / f"{number}.safetensors")
        cases.append({"kind": kind, "dropped_layers": dropped, "bottleneck": BOTTLENECK, "config": config})
    (folder / "cases.json").write_text(json.dumps({"tokens": TOKENS.tolist(), "cases": cases}))
    script = ROOT / "tests" / "adapterhub_reference.py"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    subprocess.run([adapterhub, script, folder], check=True, env=environment, stderr=sys.stderr)
    return {case: load_file(folder / f"{number}-results.safetensors") for number, case in enumerate(HUB_CASES)}


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family", "dropped"), HUB_CASES)
def test_logits_and_gradients_of_the_whole_model_are_adapterhubs(adapterhub_results, kind, family, dropped):
    model = adapted(kind, family, dropped)
    logits = model(TOKENS).logits
    logits.square().sum().backward()
    ours = {"logits": logits} | {name: p.grad for name, p in trained(model).items()}
    theirs = adapterhub_results[kind, family, dropped]
    assert ours.keys() == theirs.keys()
    for name, tensor in ours.items():
        scale = tensor.abs().max()
        assert scale > 1e-3 and torch.allclose(tensor, theirs[name], rtol=1e-3, atol=1e-4 * scale.item()), name


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "family"), sorted({case[:2] for case in HUB_CASES}))
def test_one_adapter_fewer_than_adapterhubs_would_be_noticed(adapterhub_results, kind, family):
    logits = adapted(kind, family, dropped_layers=1)(TOKENS).logits
    assert not torch.allclose(logits, adapterhub_results[kind, family, 0]["logits"], atol=1e-2)
