"""The benchmarks: what is timed side by side computes the same, on rows like the data's."""

import sys

import numpy as np
import pytest

import benchmark
from costs import benchmark_glue
from costs.benchmark_e2e import LABEL_SMOOTHING, e2e_like_rows, full_logits_loss
from lora import count_parameters
from methods.catalogue import count_trained
from models import Base
from tasks.e2e.loss import completion_loss
from training.batches import IGNORED, pad_right


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


@pytest.mark.filterwarnings("ignore:`is_gradient_checkpointing` is deprecated:FutureWarning")  # PEFT asks for it
def test_on_glue_our_model_and_pefts_train_as_many_parameters(monkeypatch):
    shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    monkeypatch.setattr(benchmark_glue, "base", lambda name: Base("bert", name, shape))
    ours, pefts = (benchmark_glue.adapted("minilm", by) for by in ("ours", "peft"))
    assert count_trained(ours)[0] == 2 * 8 * (16 + 16)  # pairs of rank 8 on query and value
    assert count_parameters(ours)[0] == count_parameters(pefts)[0]


@pytest.mark.parametrize("repetitions", ["0", "-3"])
def test_fewer_than_one_repetition_is_refused(monkeypatch, capsys, repetitions):
    monkeypatch.setattr(sys, "argv", ["benchmark.py", "glue", f"--repetitions={repetitions}"])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert f"--repetitions must be 1 or more, found {repetitions}" in capsys.readouterr().err
