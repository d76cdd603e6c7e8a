"""The benchmarks: what is timed side by side computes the same, on rows like the data's."""

import numpy as np
import pytest

from batches import IGNORED, pad_right
from benchmark_e2e import LABEL_SMOOTHING, e2e_like_rows, full_logits_loss
from training import completion_loss


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
