"""The machine: its bfloat16 instructions, and the memory that was used."""

from __future__ import annotations

import ctypes
import gc
import os
import re
import sys
from pathlib import Path

import torch

PEAK, RESET = Path("/proc/self/status"), Path("/proc/self/clear_refs")  # of Linux: man 5 proc


def has_fast_bfloat16() -> bool:
    """Whether this machine has bfloat16 instructions; where it has none, emulation is many times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def forget_peak_memory() -> None:
    """Start measuring `peak_memory_gib` anew, so that earlier runs in the same process do not count."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    if os.access(RESET, os.W_OK):
        ctypes.CDLL(None).malloc_trim(0)  # else glibc keeps the memory of small tensors, which counts as resident
        RESET.write_text("5", encoding="ascii")


def peak_memory_gib() -> float:
    """Peak memory: the GPU's if there is one, else what was resident; without Linux, over the process's whole life."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    if peak := re.search(r"VmHWM:\s*(\d+) kB", PEAK.read_text(encoding="ascii") if PEAK.exists() else ""):
        return int(peak[1]) / 2**20
    if sys.platform == "win32":
        import psutil  # accelerate brings it

        return psutil.Process().memory_info().peak_wset / 2**30
    import resource  # Windows has none

    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
