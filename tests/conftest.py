"""What several tests share: the folder of real data, and a GPT-2 small enough to compute with at once."""

from __future__ import annotations

import os
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

os.environ["HF_HUB_OFFLINE"] = "1"  # read once, when huggingface_hub is imported: so before any module of ours is

import pytest

from files import ROOT

if TYPE_CHECKING:
    from transformers import GPT2LMHeadModel


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder with `e2e/*.csv` and the rest of the real data; skips the test where there is none."""
    folder = Path(os.environ.get("LORA_DATA_DIR", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"needs the real data: {folder} is not a folder; set LORA_DATA_DIR to one that holds e2e/*.csv")
    return folder


@pytest.fixture
def tiny_gpt2() -> GPT2LMHeadModel:
    """GPT-2's architecture with 2 layers, 4 heads, width 32 and 64 tokens: seeded weights, no dropout."""
    import torch  # here, so that a file of tests that needs no model starts at once
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=64, n_positions=64, n_embd=32, n_layer=2, n_head=4, resid_pdrop=0.0, embd_pdrop=0.0,
        attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture
def gpu(monkeypatch):
    """Pretends a GPU of so many GB and that compute capability."""
    import torch

    def pretend(gigabytes: float, capability: tuple[int, int] = (8, 0)) -> None:
        properties = SimpleNamespace(total_memory=int(gigabytes * 1e9))
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr("training.precision.has_fast_bfloat16", lambda: True)
        monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda *_: (properties.total_memory, properties.total_memory))
        monkeypatch.setattr(torch.cuda, "memory_reserved", lambda *_: 0)
        monkeypatch.setattr(torch.cuda, "get_device_name", lambda *_: f"a GPU of {gigabytes} GB")
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *_: capability)

    yield pretend
    torch.set_float32_matmul_precision("highest")
