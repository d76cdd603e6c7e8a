"""What fits a GPU, which a test only pretends to have: recomputing, refusals, decoding batches, shares, TF32."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from experiments.catalogue import EXPERIMENTS, find
from experiments.settings import Job, Settings
from methods.catalogue import apply_method
from models import architecture
from runs import execute
from runs.workers import Processes
from test_training import some_rows, tiny_model
from tiny_models import SHAPES, TOKENS, settings, tiny
from training import memory, precision
from training.memory import contexts_at_once, recomputes, training_bytes, weight_bytes
from training.precision import set_products
from training.trainer import train

XXL_LORA, XXL_FULL = "table2/deberta-v2-xxlarge/mrpc/lora-r8", "table2/deberta-v2-xxlarge/mrpc/full"


def paper(name: str, **changes: object) -> Settings:
    return replace(find(name, "paper").settings, **changes)


def without_weights(chosen: Settings) -> torch.nn.Module:
    model = architecture(chosen.model, None if chosen.task == "e2e" else 2)
    apply_method(model, chosen)
    return model


# --- recomputing ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("gigabytes", "batch", "tokens", "expected"), [(40, 8, 64, False), (40, 32, 256, True), (80, 32, 256, False)]
)
def test_xxl_is_recomputed_where_its_batch_and_longest_row_ask_for_it(gpu, gigabytes, batch, tokens, expected):
    chosen = paper(XXL_LORA, batch_size=batch)
    gpu(gigabytes)
    assert recomputes(without_weights(chosen), chosen, tokens) == expected


def test_xxl_lora_on_8_rows_of_64_tokens_takes_less_than_the_12_gib_that_it_had_with_a_float32_base():
    chosen = paper(XXL_LORA)
    assert 5 < training_bytes(without_weights(chosen), 8, 64, False, True) / 2**30 < 12


@pytest.mark.parametrize("said", [True, False])
def test_what_the_settings_say_outright_is_done(gpu, said):
    chosen = paper(XXL_LORA, batch_size=2, gradient_checkpointing=said)
    gpu(40)
    assert recomputes(without_weights(chosen), chosen, 32) == said


def test_without_a_gpu_nothing_is_recomputed_that_is_not_asked_for():
    chosen = paper(XXL_LORA, batch_size=512)
    assert not recomputes(without_weights(chosen), chosen, 512)


def test_training_recomputes_by_its_own_longest_row(gpu, monkeypatch):
    asked = []
    monkeypatch.setattr("training.trainer.recomputes", lambda model, settings, tokens: asked.append(tokens) or 1 / 0)
    rows, chosen = some_rows(), settings("lora", rank=2, alpha=4.0, targets=("query", "value"))
    with pytest.raises(ZeroDivisionError):
        train(tiny_model(), rows, Job(chosen, 0, Path("unused")), loss=None, validate=None)
    assert asked == [max(len(row["input_ids"]) for row in rows)]


# --- a GPU that is too small ------------------------------------------------------------------------------------------


def test_a_gpu_with_too_little_memory_is_refused_before_the_weights_are_fetched(gpu, monkeypatch, tmp_path):
    gpu(16)
    monkeypatch.setattr(execute, "load_model", None)  # to call it would fail
    job = Job(paper(XXL_FULL), 0, tmp_path)
    with pytest.raises(ValueError, match=r"takes about \d+\.\d GiB, found 14\.9 GiB .* a GPU of 16 GB: take a larger"):
        execute.measure(job, tmp_path)


def test_the_same_run_passes_on_a_larger_gpu(gpu):
    gpu(80)
    execute._require_memory(paper(XXL_FULL))


def test_three_workers_of_one_gpu_have_a_third_of_its_memory_each(gpu, monkeypatch):
    gpu(40)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    environment = Processes(3).environment(2)
    assert (environment["CUDA_VISIBLE_DEVICES"], environment[memory.RUNS_PER_GPU]) == ("0", "3")
    chosen, large = (paper(f"table3/{model}/full") for model in ("gpt2", "gpt2-large"))
    monkeypatch.setenv(memory.RUNS_PER_GPU, "3")
    execute._require_memory(chosen)
    with pytest.raises(ValueError, match=r"found 12\.4 GiB for a run on .*fewer --workers"):
        execute._require_memory(large)


@pytest.mark.parametrize(("runs", "limits"), [("3", [1 / 3]), (None, [])])
def test_a_run_that_shares_a_gpu_keeps_to_its_share_and_one_alone_has_all(gpu, monkeypatch, tmp_path, runs, limits):
    gpu(40)
    set_to: list[float] = []
    monkeypatch.setattr(torch.cuda, "set_per_process_memory_fraction", set_to.append)
    monkeypatch.setattr(execute, "load_model", lambda *_: 1 / 0)  # what comes next
    monkeypatch.setenv(memory.RUNS_PER_GPU, runs) if runs else monkeypatch.delenv(memory.RUNS_PER_GPU, raising=False)
    with pytest.raises(ZeroDivisionError):
        execute.measure(Job(paper("table3/gpt2/full"), 0, tmp_path), tmp_path)
    assert set_to == limits


def test_what_another_program_holds_of_a_gpu_is_not_counted_on(gpu, monkeypatch):
    gpu(40)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (int(10e9), int(40e9)))
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: int(5e9))  # this process's own
    assert memory.card_bytes() == 15e9
    monkeypatch.setenv(memory.RUNS_PER_GPU, "2")
    assert memory.card_bytes() == 20e9


def test_workers_without_a_gpu_share_none(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert memory.RUNS_PER_GPU not in Processes(2).environment(0)


# --- counting ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "place"), [("lora", 0), ("full", 1)])
@pytest.mark.parametrize("tokens", [64, 128, 256, 512])
def test_what_deberta_keeps_for_the_backward_pass_is_what_its_layers_save(monkeypatch, method, place, tokens):
    shape = SHAPES["deberta-v2"] | {"hidden_size": 256, "num_attention_heads": 4, "intermediate_size": 1024}
    shape |= {"position_buckets": 256, "max_position_embeddings": 512}
    pairs = {"rank": 8, "alpha": 8.0, "targets": ("query", "value")} if method == "lora" else {}
    saved = {}
    for layers in (1, 3):
        monkeypatch.setitem(SHAPES, "deberta-v2", shape | {"num_hidden_layers": layers})
        model = tiny("deberta-v2").train()
        apply_method(model, settings(method, "deberta-v2", **pairs))
        saved[layers] = _saved(model, torch.ones(4, tokens, dtype=torch.long))
    numbers = (saved[3] - saved[1]) / 2 / (4 * tokens * 256)
    longer = memory.LONG_KEPT["deberta-v2"] * max(0, tokens - memory.LONG)
    assert numbers == pytest.approx(memory.KEPT["deberta-v2"][place] + longer, rel=0.15)


def _saved(model: torch.nn.Module, ids: torch.Tensor) -> float:
    """Float32 numbers that autograd keeps of a forward pass, the model's own left out."""
    own = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        model.base_model(ids, attention_mask=torch.ones_like(ids))
    return sum(kept[place].nbytes() for place in kept.keys() - own) / 4


def test_weights_are_counted_once_with_what_training_needs():
    full, frozen = tiny("gpt2", tie_word_embeddings=True), tiny("gpt2", tie_word_embeddings=True).requires_grad_(False)
    number = sum(p.numel() for p in full.parameters())
    assert weight_bytes(full, bfloat16=False) == 16 * number
    assert weight_bytes(frozen, bfloat16=False) == 4 * number
    assert 2 * number < weight_bytes(frozen, bfloat16=True) < 4 * number


def test_a_frozen_base_of_deberta_is_kept_in_bfloat16_and_computes_the_same():
    def outputs(convert: bool) -> torch.Tensor:
        model, chosen = tiny("deberta-v2"), settings("lora", "deberta-v2", precision="bfloat16")
        apply_method(model, replace(chosen, rank=2, alpha=4.0, targets=("query", "value")))
        if convert:
            precision.keep_frozen_in_bfloat16(model)
            frozen = [m.weight for m in model.deberta.modules() if isinstance(m, torch.nn.Linear)]
            assert {w.dtype for w in frozen if not w.requires_grad} == {torch.bfloat16}
        with precision.autocast(chosen, torch.device("cpu")):
            return model(TOKENS).logits

    torch.manual_seed(0)
    assert torch.equal(outputs(True), outputs(False))


# --- decoding and TF32 ------------------------------------------------------------------------------------------------


def test_a_large_gpu_decodes_64_contexts_and_more_and_a_small_one_fewer(gpu):
    model = architecture("gpt2-medium")
    assert contexts_at_once(model, 10, 64) == 16  # as ever on a CPU
    gpu(40)
    assert 64 <= contexts_at_once(model, 10, 64) <= 128
    gpu(4)
    assert 1 <= contexts_at_once(model, 10, 64) < 16


@pytest.mark.parametrize(
    ("chosen", "capability", "tf32", "products"),
    [("tf32", (8, 0), True, "high"), ("tf32", (7, 5), False, "high"), ("float32", (8, 0), False, "highest")],
)
def test_products_are_tf32s_where_the_settings_ask_for_it_and_the_gpu_has_it(gpu, chosen, capability, tf32, products):
    gpu(40, capability)
    assert set_products(settings("full", precision=chosen)) == tf32
    assert torch.get_float32_matmul_precision() == products


def test_tf32_is_declared_at_paper_scale_alone_and_not_for_the_official_code():
    with_tf32 = [e for e in EXPERIMENTS.values() if e.settings.precision == "tf32"]
    assert {e.scale for e in with_tf32} == {"paper"}
    assert not any(e.variant == "official-code" or e.settings.method == "released" for e in with_tf32)
