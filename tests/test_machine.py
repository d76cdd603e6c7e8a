"""Peak memory is that of what followed `forget_peak_memory`."""

import os

import pytest
import torch

import machine


@pytest.mark.skipif(
    not os.access(machine.RESET, os.W_OK) or torch.cuda.is_available(), reason="the peak cannot be reset here"
)
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


def test_without_linux_it_is_the_peak_of_the_process(tmp_path, monkeypatch):
    here = machine.peak_memory_gib()
    monkeypatch.setattr(machine, "PEAK", tmp_path / "none")
    assert machine.peak_memory_gib() >= here - 0.05 > 0
