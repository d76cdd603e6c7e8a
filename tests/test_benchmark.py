"""The benchmarks: what is timed side by side computes the same, on rows like the data's."""

import os
import re
import sys
from concurrent.futures.process import BrokenProcessPool

import numpy as np
import pytest
import torch

import benchmark
from costs import benchmark_glue, benchmark_latency, benchmark_profile, benchmark_serving, benchmark_training
from costs.benchmark_e2e import LABEL_SMOOTHING, e2e_like_rows, full_logits_loss
from costs.timing import memory_above_weights, ratio, timings
from lora import count_parameters, merge_lora, projections, remove_lora
from methods.catalogue import count_trained
from models import Base
from publish import efficiency
from serving.adapters import AdapterBank
from tasks.e2e.loss import completion_loss
from training.batches import IGNORED, pad_right

# PEFT asks for it
pytestmark = pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")


def test_both_training_steps_minimise_the_same_loss(tiny_gpt2):
    rows = e2e_like_rows(4, tiny_gpt2.config.vocab_size)
    rows = [{key: values[-60:] for key, values in row.items()} for row in rows]
    ours = completion_loss(tiny_gpt2, pad_right(rows), LABEL_SMOOTHING).item()
    assert full_logits_loss(tiny_gpt2, pad_right(rows)).item() == pytest.approx(ours, abs=1e-5)
    assert full_logits_loss(tiny_gpt2, pad_right(rows, 64)).item() == pytest.approx(ours, abs=1e-5)
    assert completion_loss(tiny_gpt2, pad_right(rows)).item() != pytest.approx(ours, abs=1e-5)


def test_rows_have_the_lengths_of_e2e():
    rows = e2e_like_rows(2000, 50257)
    completions = np.array([sum(label != IGNORED for label in row["labels"]) for row in rows])
    contexts = np.array([len(row["input_ids"]) for row in rows]) - completions
    assert contexts.mean() == pytest.approx(31, abs=1) and completions.mean() == pytest.approx(27.7, abs=1)
    assert np.corrcoef(contexts, completions)[0, 1] == pytest.approx(0.7, abs=0.05)


def test_on_glue_our_model_and_pefts_train_as_many_parameters(monkeypatch):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(benchmark_glue, "base", lambda name: Base("bert", name, shape))
    ours, pefts = (benchmark_glue.adapted("minilm", by) for by in ("ours", "peft"))
    assert count_trained(ours)[0] == 2 * 8 * (16 + 16)  # pairs of rank 8 on query and value
    assert count_parameters(ours)[0] == count_parameters(pefts)[0]


SMALL = {
    "gpt2": {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 99, "bos_token_id": 0, "eos_token_id": 0,
             "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0},
    "bert": {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32,
             "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0},
    "llama": {"hidden_size": 24, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 3,
              "num_key_value_heads": 1, "vocab_size": 99, "tie_word_embeddings": True},
}  # fmt: skip


@pytest.fixture
def small(monkeypatch):
    """Every model of the benchmarks is a tiny one of its family."""
    families = {"minilm": "bert", "roberta-base": "bert", "roberta-large": "bert", "smollm2-135m": "llama"}

    def tiny(name):
        family = families.get(name, "gpt2")
        return Base(family, name, SMALL[family])

    for module in (benchmark_training, benchmark_latency):
        monkeypatch.setattr(module, "base", tiny)
    monkeypatch.setattr(benchmark_latency, "BOTTLENECKS", {"Adapter^H": ("houlsby", (2, 2, 2))})
    monkeypatch.setattr(benchmark_latency, "SIZES", ((16, 8),))


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
@pytest.mark.parametrize("name", benchmark_training.BASES)
def test_all_that_is_timed_beside_a_lora_step_has_its_loss(small, name):
    batch, losses = benchmark_training.typical_batch(name), {}
    for method, add in benchmark_training.METHODS.items():
        if method != "loralib" or name == "gpt2":
            add(model := benchmark_training.random_model(name), 0.0)
            losses[method] = benchmark_training.loss_of(model, batch).item()
    assert losses == pytest.approx(dict.fromkeys(losses, losses["ours"]), abs=1e-5) and len(losses) > 3


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")
def test_every_ratio_of_steps_latency_and_storage_is_measured(small):
    training = benchmark_training.training(2)
    assert len(training) == 6 * 5 + 2 and all(low <= median <= high for median, low, high in training.values())
    latency = benchmark_latency.latency(2)
    assert set(latency) == {
        f"batch 1, length 8: {name} / plain" for name in ("Adapter^H", "LoRA merged", "LoRA unmerged")
    }
    adapters = benchmark_latency.adapters(2)
    patterns = [pattern for _, _, name, pattern, _ in efficiency.CLAIMS if name == "adapters"]
    assert all(sum(bool(re.search(pattern, name)) for name in adapters) in (1, 2) for pattern in patterns)
    assert all(sum(bool(re.search(pattern, name)) for pattern in patterns) <= 1 for name in adapters)
    times = {"seconds to merge", "seconds to unmerge", "seconds to load", "milliseconds to switch"}
    whole, adapter = adapters["MB of a whole model"], adapters["MB of an adapter, its folder in PEFT's layout"]
    assert adapter > adapters["MB of an adapter, the numbers that were trained"] > 0 and times <= adapters.keys()
    saved = adapters["ten models / one model and ten adapters (storage)"]
    assert saved == pytest.approx(10 * whole / (whole + 10 * adapter))
    plain = benchmark_training.random_model("gpt2")
    pairs = 4 * (16 + 16) * 2  # rank 4, on query and value of one layer
    assert adapters["full / LoRA r=4 (trained parameters)"] == count_parameters(plain)[1] / pairs


@pytest.mark.parametrize("name", benchmark_training.BASES)
def test_the_floor_goes_back_to_the_first_layers_query_and_value_and_no_further(small, name):
    model, batch = benchmark_training.random_model(name), benchmark_training.typical_batch(name)
    benchmark_training.frozen(model, 0.0)
    outputs = {}
    for place, module in model.named_modules():
        module.register_forward_hook(lambda module, _, output, place=place: outputs.setdefault(place, output))
    loss = benchmark_training.loss_of(model, batch)
    first = [place for place in outputs if projections(place) and ".0." in place]
    adapted = [place for place in first if {"query", "value"} & set(projections(place))]
    assert adapted and all(outputs[place].requires_grad and outputs[place].is_leaf for place in adapted)
    assert not outputs[next(place for place in outputs if "embed" in place or place.endswith("wte"))].requires_grad
    loss.backward()


def test_activations_are_what_a_forward_pass_keeps_and_frozen_matrices_keep_less(small):
    linear, rows = torch.nn.Linear(8, 4), torch.randn(16, 8, requires_grad=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(benchmark_training, "loss_of", lambda model, batch: model(batch).exp().sum())
        assert benchmark_training.activation_bytes(linear, rows) == 4 * (16 * 8 + 16 * 4)  # x, and exp's output
    batch = {"input_ids": torch.arange(16).reshape(2, 8), "labels": torch.arange(16).reshape(2, 8)}
    kept = {}
    for method in ("ours", "full"):
        model = benchmark_training.random_model("gpt2-medium")
        benchmark_training.METHODS[method](model, 0.0)
        kept[method] = benchmark_training.activation_bytes(model, batch)
    assert 0 < kept["ours"] < kept["full"]


@pytest.mark.parametrize("name", benchmark_training.BASES)
def test_what_lora_adds_is_the_sum_over_operations(small, monkeypatch, name):
    monkeypatch.setattr(benchmark_profile, "BASES", [name])
    monkeypatch.setattr(benchmark_profile, "SHOWN", 1000)
    whole, *parts = benchmark_profile.profile(2).values()
    assert len(parts) > 10 and sum(parts) == pytest.approx(whole)


def test_a_measurement_whose_process_is_killed_ends():
    with pytest.raises(BrokenProcessPool):
        memory_above_weights(os._exit, 1)


def test_a_merged_pair_changes_what_the_timed_model_says_and_adds_nothing_to_it(small):
    model, plain = benchmark_latency.with_lora("gpt2-medium"), benchmark_training.random_model("gpt2-medium").eval()
    ids = torch.arange(8)[None]
    assert not torch.allclose(model(ids).logits, plain(ids).logits)
    merge_lora(model)
    remove_lora(model)
    assert [type(module) for module in model.modules()] == [type(module) for module in plain.modules()]


@pytest.mark.parametrize(
    ("times", "expected"),
    [([3.0], [3, 3, 3]), ([1.0, 9.0, 2.0], [2, 1, 9]), (list(range(1, 16)), [8, 4, 12]), ([2.0] * 9, [2, 2, 2])],
)
def test_a_ratio_is_the_median_of_pairs_with_the_sign_tests_interval(times, expected):
    assert ratio(times, [1.0] * len(times)) == expected
    assert ratio([10 * t for t in times], [10.0] * len(times)) == expected


def test_variants_take_turns_and_the_warm_up_is_not_counted():
    turns = []
    seconds = timings({"a": lambda: turns.append("a"), "b": lambda: turns.append("b")}, repetitions=3, warmup=1)
    assert turns == ["a", "b", "b", "a"] * 2 and [len(each) for each in seconds.values()] == [3, 3]


@pytest.fixture
def small_serving(monkeypatch):
    shape = {"n_embd": 16, "n_layer": 1, "n_head": 2, "vocab_size": 50, "n_positions": 32, "eos_token_id": 0}
    monkeypatch.setattr(benchmark_serving, "base", lambda name: Base("gpt2", name, shape))
    small = {"PROMPT": 5, "TOKENS": 2, "VOCABULARY": 50, "ROWS": {1: 4, 2: 4, 6: 6}, "REGISTERED": 3}
    for name, value in small.items():
        monkeypatch.setattr(benchmark_serving, name, value)


def test_pefts_mixed_batch_and_ours_write_the_same_tokens(small_serving):
    names, ids = ["0", "1", "0"], benchmark_serving.prompts(3)
    with benchmark_serving.folders(2) as saved:
        bank, theirs = benchmark_serving.our_bank(saved), benchmark_serving.pefts(saved)
    with bank.rows(names), torch.no_grad():
        ours = bank.model(ids).logits
    with torch.no_grad():
        assert torch.allclose(ours, theirs(ids, adapter_names=names).logits, atol=1e-6)
        assert not torch.allclose(ours, theirs(ids, adapter_names=["1", "0", "1"]).logits, atol=1e-6)


def test_each_mixture_is_timed_against_one_adapter_and_against_peft(small_serving):
    measured = benchmark_serving.mixed(1)
    for what in ("next token", "2 tokens"):
        for rows, adapters in ((4, 2), (6, 6)):
            for pair in ("ours / one adapter", "PEFT / ours", "ours / the base alone"):
                assert measured[f"{what}, {rows} rows, {adapters} adapters: {pair} (time)"][1] > 0
    assert benchmark_serving.beams(1, rows=3, adapters=2)["seconds, PEFT"] > 0


def test_a_wrong_row_among_the_mixed_requests_is_counted(small_serving, monkeypatch):
    wrong = "9 mixed requests: rows unlike the adapter alone"
    assert benchmark_serving.requests(1, number=9)[wrong] == 0
    rows = AdapterBank.rows  # a bank that mixes up its rows
    monkeypatch.setattr(AdapterBank, "rows", lambda bank, names: rows(bank, names[::-1]))
    assert benchmark_serving.requests(1, number=9)[wrong] > 0


@pytest.mark.parametrize("repetitions", ["0", "-3"])
def test_fewer_than_one_repetition_is_refused(monkeypatch, capsys, repetitions):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "glue", f"--repetitions={repetitions}"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert f"--repetitions must be 1 or more, found {repetitions}" in capsys.readouterr().err
