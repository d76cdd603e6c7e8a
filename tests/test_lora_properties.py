"""Whatever is done to a model with LoRA, in whatever order: what it computes, what is frozen and what is trained."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from adapter_files import base_parameters, load_lora, plain_name, save_lora
from lora import (
    PROJECTIONS,
    LoRAConfig,
    LoRALinear,
    add_lora,
    count_parameters,
    lora_layers,
    merge_lora,
    remove_lora,
    unmerge_lora,
)
from tiny_models import TOKENS, logits, tiny

FAMILIES = ("gpt2", "llama", "bert", "deberta-v2")
TARGETS = st.lists(st.sampled_from([t for t in PROJECTIONS if t != "mlp_gate"]), min_size=1, unique=True)
OFTEN = settings(max_examples=60, deadline=None, derandomize=True, database=None)  # the same examples every time


def step(model: nn.Module) -> nn.Module:
    labels = TOKENS if model.config.model_type in ("gpt2", "llama") else torch.tensor([0, 1])
    optimizer = torch.optim.SGD([p for p in model.parameters() if p.requires_grad], lr=0.1)
    model.train()
    for module in model.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    model(TOKENS, labels=labels).loss.backward()
    optimizer.step()
    return model.eval()


def merged(model: nn.Module) -> nn.Module:
    merge_lora(model)
    return model


def unmerged(model: nn.Module) -> nn.Module:
    unmerge_lora(model)
    return model


def like(model: nn.Module) -> nn.Module:
    return tiny(model.config.model_type).to(model.dtype)


def removed_and_loaded(model: nn.Module) -> nn.Module:
    with tempfile.TemporaryDirectory() as folder:
        save_lora(model, folder)
        unmerge_lora(model)
        remove_lora(model)
        assert not lora_layers(model) and torch.equal(logits(model), logits(like(model)))
        load_lora(model, folder)
    return model


def through_a_folder(model: nn.Module) -> nn.Module:
    again = like(model)
    with tempfile.TemporaryDirectory() as folder:
        save_lora(model, folder)
        load_lora(again, folder)
    return again


def through_a_state_dict(model: nn.Module) -> nn.Module:
    again = like(model)
    [layer, *_] = lora_layers(model).values()
    add_lora(again, layer.config)
    again.load_state_dict(model.state_dict())
    return again


KEEP_THE_ANSWER = (merged, unmerged, removed_and_loaded, through_a_folder, through_a_state_dict)


def same(ours: torch.Tensor, theirs: torch.Tensor) -> bool:
    close = {"atol": 0.25, "rtol": 0.05} if ours.dtype == torch.bfloat16 else {"atol": 1e-4}
    return torch.allclose(ours, theirs, **close)


def with_the_other(model: nn.Module) -> torch.Tensor:
    """What the merged model computes where it is unmerged, and the other way round."""
    is_merged = next(iter(lora_layers(model).values())).unmerged is not None
    there, back = (unmerge_lora, merge_lora) if is_merged else (merge_lora, unmerge_lora)
    there(model)
    answer = logits(model)
    back(model)
    return answer


@OFTEN
@given(
    family=st.sampled_from(FAMILIES),
    rank=st.integers(1, 6),
    alpha=st.sampled_from([0.5, 4, 32.0]),
    targets=TARGETS,
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    acts=st.lists(st.sampled_from((step, *KEEP_THE_ANSWER)), max_size=7),
)
def test_in_any_order_the_base_stays_and_only_training_changes_the_answer(family, rank, alpha, targets, dtype, acts):
    model = tiny(family).to(dtype)
    plain, base = logits(model), {name: p.clone() for name, p in base_parameters(model).items()}
    add_lora(model, LoRAConfig(rank, alpha, targets=tuple(targets)))
    count, answer = count_parameters(model), logits(model)
    assert torch.allclose(answer, plain, atol=1e-6)
    for act in acts:
        model = act(model)
        if act is step:
            answer = logits(model)
        assert same(logits(model), answer) and same(with_the_other(model), answer)
        assert count_parameters(model) == count
    unmerge_lora(model)
    assert all(torch.equal(p, base[name]) for name, p in base_parameters(model).items())
    merge_lora(model)
    state = model.state_dict()  # is of the base and the pairs, and leaves the model merged
    assert all(torch.equal(state[n], base[plain_name(n)]) for n in state if plain_name(n) in base)
    remove_lora(model)
    assert not lora_layers(model) and same(logits(model), answer)


@OFTEN
@given(
    parts=st.integers(1, 4),
    size=st.integers(1, 9),
    d_in=st.integers(1, 9),
    rank=st.integers(1, 9),
    dtype=st.sampled_from([torch.float32, torch.float64, torch.bfloat16]),
    adapted=st.sets(st.integers(0, 3), min_size=1),
    bias=st.booleans(),
)
def test_a_layer_of_any_shape_computes_equation_3_part_by_part(parts, size, d_in, rank, dtype, adapted, bias):
    names = [*PROJECTIONS][:parts]
    targets = tuple(name for i, name in enumerate(names) if i in adapted)
    linear = nn.Linear(d_in, parts * size, bias=bias).to(dtype)
    if not targets:
        return
    if rank > min(size, d_in):
        with pytest.raises(ValueError, match="larger than the matrix to adapt"):
            LoRALinear(linear, tuple(names), LoRAConfig(rank, targets=targets))
        return
    layer = LoRALinear(linear, tuple(names), LoRAConfig(rank, 3.0, targets=targets)).eval()
    nn.init.normal_(layer.lora_B)
    x = torch.randn(2, 5, d_in).to(dtype)
    with torch.no_grad():
        want = linear(x).double()
        for i, target in enumerate(targets):
            A, B = (m[i * n : (i + 1) * n].double() for m, n in ((layer.lora_A, rank), (layer.lora_B, size)))
            place = names.index(target) * size
            want[..., place : place + size] += 3.0 / rank * x.double() @ A.T @ B.T
        close = {"atol": 0.3, "rtol": 0.05} if dtype == torch.bfloat16 else {"atol": 1e-4}
        assert torch.allclose(layer(x).double(), want, **close)
        merge_lora(layer)
        assert torch.allclose(layer(x).double(), want, **close)


@OFTEN
@given(content=st.binary(max_size=300), name=st.sampled_from(["adapter_model.safetensors", "adapter_config.json"]))
def test_any_bytes_in_the_place_of_a_file_are_refused_by_a_declared_error(content, name):
    model = tiny("bert")
    with tempfile.TemporaryDirectory() as folder:
        other = tiny("bert")
        add_lora(other, LoRAConfig(2))
        save_lora(other, folder)
        (Path(folder) / name).write_bytes(content)
        with pytest.raises(ValueError, match="expected"):
            load_lora(model, folder)
    assert not lora_layers(model)
