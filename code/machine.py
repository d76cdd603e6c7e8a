"""What the machine at hand has: bfloat16 instructions, and the memory that was used."""

from __future__ import annotations

import resource
import sys

import torch

from settings import Settings


def has_fast_bfloat16() -> bool:
    """Whether this machine has bfloat16 instructions; where it has none, emulation is many times slower."""
    if torch.cuda.is_available():
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def uses_bfloat16(settings: Settings) -> bool:
    return settings.precision == "bfloat16" or (settings.precision == "auto" and has_fast_bfloat16())


def peak_memory_gib() -> float:
    """Of the GPU where there is one, else the process's resident peak."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 2**30
