"""Peak memory is that of what followed `forget_peak_memory`."""

import os
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch

from files import ROOT
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


def test_on_windows_it_is_the_peak_of_the_process_too(tmp_path, monkeypatch):
    monkeypatch.setattr(machine, "PEAK", tmp_path / "none")
    monkeypatch.setattr(machine.sys, "platform", "win32")
    process = SimpleNamespace(memory_info=lambda: SimpleNamespace(peak_wset=3 * 2**29))
    monkeypatch.setitem(sys.modules, "psutil", SimpleNamespace(Process=lambda: process))
    assert machine.peak_memory_gib() == 1.5


def test_no_command_needs_what_windows_lacks():
    code = (
        "import os, sys, filelock, pandas, peft, torch, transformers.trainer\n"  # they know Windows by themselves
        "for name in ('fcntl', 'resource', 'pwd', 'grp', 'termios'): sys.modules[name] = None\n"
        "for name in ('EX_TEMPFAIL', 'fork', 'getpgid', 'killpg', 'setsid'): delattr(os, name)\n"
        f"sys.path.insert(0, {str(ROOT / 'code')!r})\n"
        "import benchmark, make, reproduce, train, runs.execute, runs.workers\n"
        "from training.machine import peak_memory_gib\n"
        "assert peak_memory_gib() > 0"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
