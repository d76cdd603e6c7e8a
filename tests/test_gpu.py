"""What only a GPU can show: that it computes what the CPU does, and takes the memory that is said before.

`make gpu-check` runs these; elsewhere: pytest -m gpu tests/test_gpu.py
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from experiments.settings import Settings
from lora import lora_layers, merge_lora
from methods.catalogue import apply_method
from tasks.e2e.beam_search import DecodingSettings, beam_search
from tasks.e2e.loss import completion_loss
from test_training import SETTINGS, run_training, stop_at_call
from tiny_models import LANGUAGE_MODELS, TOKENS, settings, tiny
from training.batches import pad_right
from training.machine import forget_peak_memory, has_fast_bfloat16, peak_memory_gib
from training.memory import GIBIBYTE, training_bytes
from training.optimizer import OfficialAdamW, trained_state
from training.precision import autocast, keep_frozen_in_bfloat16, set_products
from training.trainer import TrainingInterrupted

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU: expected one, found none"),
]
GPU = "cuda"
PAIRS = {"rank": 2, "alpha": 4.0, "targets": ("query", "value")}
FAMILIES = ("gpt2", "llama", "bert", "roberta", "deberta-v2")


@pytest.fixture(autouse=True)
def float32_products():
    set_products(SETTINGS)


def adapted(family: str, **changes: object) -> tuple[torch.nn.Module, Settings]:
    """A tiny model with random pairs, and the settings of its method."""
    model, chosen = tiny(family), settings("lora", family, **PAIRS | changes)
    torch.manual_seed(1)
    apply_method(model, chosen)
    for layer in lora_layers(model).values():
        torch.nn.init.normal_(layer.lora_B, std=0.3)
    return model, chosen


def loss_and_gradients(model: torch.nn.Module, chosen: Settings, device: str) -> dict[str, torch.Tensor]:
    """The loss of one batch on that device and its gradients, which are on the CPU."""
    model.to(device).zero_grad()
    labels = TOKENS if model.config.model_type in LANGUAGE_MODELS else torch.tensor([0, 1])
    with autocast(chosen, torch.device(device)):
        loss = model(TOKENS.to(device), labels=labels.to(device)).loss
    loss.backward()
    gradients = {name: p.grad for name, p in model.named_parameters() if p.requires_grad}
    return {name: value.detach().float().cpu() for name, value in ({"loss": loss} | gradients).items()}


def distance(results: dict[str, torch.Tensor], others: dict[str, torch.Tensor]) -> float:
    """The largest relative difference of the loss and of each gradient."""
    assert results.keys() == others.keys()
    return max(((results[name] - others[name]).norm() / others[name].norm()).item() for name in others)


@pytest.mark.parametrize("family", FAMILIES)
def test_loss_and_gradients_are_the_cpus(family):
    model, chosen = adapted(family)
    expected = loss_and_gradients(model, chosen, "cpu")
    assert distance(loss_and_gradients(model, chosen, GPU), expected) < 1e-4
    next(iter(lora_layers(model).values())).lora_A.data *= 1.01
    assert distance(loss_and_gradients(model, chosen, GPU), expected) > 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_says_what_it_said_with_its_pairs_beside(family):
    model = adapted(family)[0].to(GPU).eval()
    with torch.no_grad():
        beside = model(TOKENS.to(GPU)).logits
        merge_lora(model)
        assert torch.allclose(model(TOKENS.to(GPU)).logits, beside, atol=1e-4)
        for layer in lora_layers(model).values():
            layer.weight.data *= 1.01
        assert not torch.allclose(model(TOKENS.to(GPU)).logits, beside, atol=1e-4)


def test_a_frozen_base_in_bfloat16_gives_the_gradients_of_one_that_is_recast_every_step():
    if not has_fast_bfloat16():
        pytest.skip("this GPU only emulates bfloat16")
    model, chosen = adapted("bert", precision="bfloat16")
    recast = loss_and_gradients(model, chosen, GPU)
    keep_frozen_in_bfloat16(model)
    assert distance(loss_and_gradients(model, chosen, GPU), recast) < 1e-3


def test_beam_search_finds_the_cpus_answers():
    model = tiny("gpt2", vocab_size=64, n_positions=64).double()
    prompts = [torch.randint(1, 64, (n,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(5, 25)]
    decoding = DecodingSettings(beams=4, max_new_tokens=12)
    expected = beam_search(model, prompts, [0], decoding)
    assert beam_search(model.to(GPU), prompts, [0], decoding) == expected
    assert beam_search(model, [[*p[:-1], 1 + p[-1] % 63] for p in prompts], [0], decoding) != expected


def test_the_optimizer_takes_the_cpus_steps():
    moved = []
    for device in ("cpu", GPU):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 64, device=device))
        optimizer = OfficialAdamW([weight], epsilon=1e-6, lr=0.1, weight_decay=0.01)
        for step in range(1, 20):
            weight.grad = torch.cos(step * weight.detach())
            optimizer.step()
        moved.append(weight.detach().cpu())
    assert torch.allclose(*moved, atol=1e-4)
    assert not torch.allclose(moved[0], torch.linspace(-1, 1, 64), atol=1e-1)


def test_a_training_that_is_stopped_and_continued_ends_where_one_does_that_is_not(tmp_path):
    plain = replace(SETTINGS, label_smoothing=0.0)
    whole, result = run_training(tmp_path / "whole", plain)
    with pytest.raises(TrainingInterrupted):
        run_training(tmp_path / "stopped", plain, loss=stop_at_call(7))
    continued, again = run_training(tmp_path / "stopped", plain)
    assert again.steps == result.steps and next(whole.parameters()).is_cuda
    expected = trained_state(whole)
    assert all(torch.allclose(value, expected[name], atol=1e-3) for name, value in trained_state(continued).items())
    other = trained_state(run_training(tmp_path / "other", replace(plain, learning_rate=2e-3))[0])
    assert not all(torch.allclose(value, expected[name], atol=1e-3) for name, value in other.items())


def take_step(model: torch.nn.Module, batch: dict[str, torch.Tensor]) -> None:
    optimizer = OfficialAdamW([p for p in model.parameters() if p.requires_grad], epsilon=1e-6)
    completion_loss(model, batch).backward()
    optimizer.step()


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_step_takes_no_more_memory_than_is_said_before_and_less_where_it_is_recomputed(method):
    shape = {"n_layer": 6, "n_embd": 512, "n_head": 8, "n_positions": 512, "vocab_size": 8192,
             "activation_function": "gelu_pytorch_tanh"}  # fmt: skip
    rows, tokens = 16, 256
    batch = pad_right([{"input_ids": [1 + i % 99] * tokens, "labels": [-100] * 128 + [5] * 128} for i in range(rows)])
    peaks = {}
    for recomputed in (False, True):
        model = tiny("gpt2", **shape, initializer_range=0.02).to(GPU).train()
        chosen = replace(SETTINGS, method=method, **PAIRS if method == "lora" else {}, label_smoothing=0.0)
        apply_method(model, chosen)
        if recomputed:
            model.gradient_checkpointing_enable({"use_reentrant": False})
        said = training_bytes(model, rows, tokens, recomputed, bfloat16=False) / GIBIBYTE
        forget_peak_memory()
        take_step(model, {name: value.to(GPU) for name, value in batch.items()})
        peaks[recomputed] = peak_memory_gib()
        assert peaks[recomputed] < said
    assert peaks[True] < 0.8 * peaks[False]
