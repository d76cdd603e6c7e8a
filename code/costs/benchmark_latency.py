"""Table 1: what LoRA and adapters add to the latency of GPT-2 medium's forward pass, merged and not.

The paper times a forward pass on a Quadro RTX8000 at three sizes of input, with adapters of about 0.5M parameters at
the first and 11M at the others. A GPU does the same here; on a CPU the batches are a sixteenth as large, at the same
lengths. Weights are random, since speed does not depend on them. A merged model keeps LoRA's layers, which pass on what
the base's give.
"""

from __future__ import annotations

from itertools import cycle
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import nn

import files
from adapter_files import load_lora, save_lora
from costs.benchmark_training import random_model
from costs.timing import Step, ratio, spread, timings
from lora import LoRAConfig, add_lora, count_parameters, lora_layers, merge_lora, remove_lora, unmerge_lora
from methods.adapters import add_adapters
from models import base
from serving.adapters import AdapterBank

NAME, SMALL = "gpt2-medium", "gpt2"
SIZES = ((32, 512), (16, 256), (1, 128))  # the paper's batch sizes and lengths
BOTTLENECKS = {"Adapter^L": ("lin", (8, 224, 224)), "Adapter^H": ("houlsby", (4, 112, 112))}  # 0.5M, 11M, 11M
RANK = 4


def forward(model: nn.Module, ids: torch.Tensor) -> Step:
    """A forward pass without gradients, finished when it returns."""

    @torch.inference_mode()
    def call() -> None:
        model(ids)
        if ids.is_cuda:
            torch.cuda.synchronize()

    return call


def with_lora(name: str) -> nn.Module:
    """The model with pairs that change its outputs."""
    model = random_model(name).eval()
    add_lora(model, LoRAConfig(rank=RANK, alpha=32))
    for layer in lora_layers(model).values():
        nn.init.normal_(layer.lora_B, std=0.02)
    return model


def latency(repetitions: int, data_dir: Path | None = None) -> dict[str, list[float]]:
    """Each variant's time over the plain model's, with its interval, at each of SIZES."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    share = 1 if device.type == "cuda" else 16
    models = {"plain": random_model(NAME).eval(), "LoRA merged": with_lora(NAME), "LoRA unmerged": with_lora(NAME)}
    merge_lora(models["LoRA merged"])
    measured = {}
    for place, (rows, length) in enumerate(SIZES):
        for kind, (name, bottlenecks) in BOTTLENECKS.items():
            models[kind] = random_model(NAME).eval()
            add_adapters(models[kind], name, bottlenecks[place])
        shape = (max(1, rows // share), length)
        ids = torch.randint(base(NAME).shape.get("vocab_size", 50257), shape, device=device)
        seconds = timings({key: forward(model.to(device), ids) for key, model in models.items()}, repetitions)
        for key in models.keys() - {"plain"}:
            measured[f"batch {shape[0]}, length {length}: {key} / plain"] = ratio(seconds[key], seconds["plain"])
    return dict(sorted(measured.items()))


def adapters(repetitions: int, data_dir: Path | None = None) -> dict[str, float | list[float]]:
    """Time to merge, unmerge, load and switch all pairs of GPT-2 medium, and what tasks take on GPT-2 small."""
    model, plain = with_lora(NAME), random_model(NAME).eval()
    with TemporaryDirectory() as folder:
        save_lora(model, folder)

        def load() -> None:
            load_lora(plain, folder)
            remove_lora(plain)  # unmerged: the plain model again

        steps = {"merge": lambda: merge_lora(model), "unmerge": lambda: unmerge_lora(model), "load": load}
        measured = {f"seconds to {name}": spread(values) for name, values in timings(steps, repetitions).items()}
        seconds = seconds_to_switch(plain, folder, 10 * repetitions)
        measured["milliseconds to switch"] = spread([1000 * value for value in seconds])
    with TemporaryDirectory() as folder:
        model = with_lora(SMALL)
        save_lora(model, folder)
        adapter = sum(file.stat().st_size for file in Path(folder).iterdir())
    pairs, total = count_parameters(model)
    whole = 4 * (total - pairs)
    ten_models, ten_adapters = 10 * whole, whole + 10 * adapter
    return measured | {
        "MB of an adapter, the numbers that were trained": 4 * pairs / files.MEGABYTE,
        "MB of an adapter, its folder in PEFT's layout": adapter / files.MEGABYTE,
        "MB of a whole model": whole / files.MEGABYTE,
        "MB of ten tasks, ten models": ten_models / files.MEGABYTE,
        "MB of ten tasks, one model and ten adapters": ten_adapters / files.MEGABYTE,
        "ten models / one model and ten adapters (storage)": ten_models / ten_adapters,
        "full / LoRA r=4 (trained parameters)": (total - pairs) / pairs,
    }


def seconds_to_switch(plain: nn.Module, folder: str, repetitions: int) -> list[float]:
    """What forward passes of one token take longer where another adapter was used before; both are unmerged."""
    bank, token = AdapterBank(plain), torch.zeros(1, 1, dtype=torch.long)
    for name in ("one", "other"):
        bank.add(name, folder)
    names, stay = cycle(bank.names), forward(plain, token)

    def switch() -> None:
        with bank.rows([next(names)]):
            stay()

    with bank.rows(["one"]):
        seconds = timings({"switch": switch, "stay": stay}, repetitions)
    return [after - before for after, before in zip(seconds["switch"], seconds["stay"], strict=True)]
