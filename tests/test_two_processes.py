"""One run in two processes of `accelerate launch`: the numbers of one process with the same batches."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
import torch

import two_process_runs
from tasks.e2e.loss import completion_loss
from training.batches import share_of

STEPS = {"completions": 12, "sentences": 12, "continued": 22}


@pytest.fixture(scope="module")
def one_and_two(tmp_path_factory):
    """What one process and the first of two found of each run, and what the second did."""
    one, two = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes=2"]
    launch += ["--num_machines=1", "--mixed_precision=no", "--dynamo_backend=no", "--main_process_port=0"]
    log = two / "log"
    with log.open("w") as output:
        pair = subprocess.Popen(
            [*launch, two_process_runs.__file__, str(two)], stdout=output, stderr=subprocess.STDOUT,
            env=os.environ | {"OMP_NUM_THREADS": "1"},
        )  # fmt: skip
    alone = two_process_runs.runs(one)
    assert pair.wait() == 0, log.read_text()[-3000:]
    return alone, *(json.loads((two / f"process-{rank}.json").read_text()) for rank in (0, 1))


@pytest.mark.parametrize("run", ["completions", "sentences", "continued"])
def test_losses_gradients_and_weights_are_those_of_one_process(one_and_two, run):
    alone, first, _ = (found[run] for found in one_and_two)
    assert len(alone["history"]) == STEPS[run] + 2  # every step and every epoch
    for ours, theirs in zip(first["history"], alone["history"], strict=True):
        assert ours == pytest.approx(theirs, abs=1e-5)
    assert first["weights"].keys() == alone["weights"].keys()
    for name, weights in alone["weights"].items():
        assert first["weights"][name] == pytest.approx(weights, abs=1e-4), name
    assert (first["tokens"], first["kept_step"]) == (alone["tokens"], alone["kept_step"])


def test_a_signal_to_one_process_stops_both_after_the_same_step(one_and_two):
    alone, first, second = (found["stopped"] for found in one_and_two)
    assert (
        first
        == alone
        == {"error": f"stopped after step {two_process_runs.STOPPED_STEP}; run the same command to continue"}
    )
    assert second == {}


def test_a_loss_that_breaks_in_one_process_stops_both(one_and_two):
    _, first, second = one_and_two
    assert f"nan at step {two_process_runs.BROKEN_STEP} of" in first["broken"]["error"]
    assert second["broken"] == first["broken"]


def test_the_second_process_has_no_results(one_and_two):
    assert all(one_and_two[2][run] == {} for run in STEPS)


@pytest.mark.parametrize("prompt_loss", [False, True])
@pytest.mark.parametrize("rows", [1, 2, 5, 8])
def test_the_weighted_shares_add_up_to_the_loss_of_the_batch(tiny_gpt2, rows, prompt_loss):
    torch.manual_seed(rows)
    labels = torch.randint(1, 64, (rows, 12))
    for row in range(rows):
        labels[row, 2 + 3 * (row % 3) :] = -100  # two, five or eight labels, the first of which nothing predicts
        if not prompt_loss:
            labels[row] = labels[row].flip(0)  # behind a context
    batch = {"input_ids": torch.randint(1, 64, (rows, 12)), "labels": labels}
    shares = [share_of(batch, process, 2) for process in (0, 1)]
    losses = [completion_loss(tiny_gpt2, share).item() for share, _ in shares]
    whole = completion_loss(tiny_gpt2, batch).item()
    assert sum(weight * loss for (_, weight), loss in zip(shares, losses, strict=True)) / 2 == pytest.approx(
        whole, abs=1e-5
    )
    if rows == 5:  # the plain mean of means is another number
        assert abs(sum(losses) / 2 - whole) > 1e-3


def test_one_process_has_the_batch_as_it_is():
    batch = {"input_ids": torch.ones(3, 2), "labels": torch.ones(3, 2)}
    assert share_of(batch, 0, 1) == (batch, 1.0)
