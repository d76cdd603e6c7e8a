"""The benchmarks: what is timed side by side computes the same, on rows like the data's."""

import sys

import numpy as np
import pytest
import torch

import benchmark
from costs import benchmark_glue, benchmark_serving
from costs.benchmark_e2e import LABEL_SMOOTHING, e2e_like_rows, full_logits_loss
from lora import count_parameters
from methods.catalogue import count_trained
from models import Base
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
            assert measured[f"{what}, {rows} rows: {adapters} adapters / one (time)"] > 0
            assert measured[f"{what}, {rows} rows, {adapters} adapters: PEFT / ours (time)"] > 0
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
