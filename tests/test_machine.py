"""Peak memory is that of what followed `forget_peak_memory`."""

import os

import pytest
import torch

from training import machine

resettable = pytest.mark.skipif(
    not os.access(machine.RESET, os.W_OK) or torch.cuda.is_available(), reason="the peak cannot be reset here"
)


@resettable
def test_a_peak_before_is_forgotten_and_one_after_is_seen():
    numbers = torch.ones(2**27)  # half a GiB
    whole = machine.peak_memory_gib()
    del numbers
    assert machine.peak_memory_gib() == pytest.approx(whole, abs=0.05)
    machine.forget_peak_memory()
    before = machine.peak_memory_gib()
    assert before < whole - 0.4
    numbers = torch.ones(2**26)  # noqa: F841, held while the peak is read
    assert machine.peak_memory_gib() - before == pytest.approx(0.25, abs=0.05)


@resettable
def test_small_tensors_that_a_run_has_freed_are_not_in_the_next_ones_peak():
    numbers = [torch.ones(20_000) for _ in range(5_000)]  # 0.37 GiB in blocks that glibc does not give back by itself
    last = numbers[-1]  # noqa: F841, above the others, as what outlives a run is
    del numbers
    full = machine.peak_memory_gib()
    machine.forget_peak_memory()
    assert machine.peak_memory_gib() < full - 0.3


def test_without_linux_it_is_the_peak_of_the_process(tmp_path, monkeypatch):
    peak = machine.peak_memory_gib()
    monkeypatch.setattr(machine, "PEAK", tmp_path / "none")
    assert machine.peak_memory_gib() >= peak - 0.05 > 0
