"""What a LoRA step costs beside the least that it can cost, PEFT's, loralib's and full fine-tuning's.

The floor is the frozen model: a forward pass, and a backward one as far as the outputs of the first layer's query and
value, which no pair in that layer can do without. All variants have the same rows, loss and precision, and the layers
that our runs have on a CPU (`quick_layers.py`), so that PEFT and loralib differ from ours in the pairs alone. PEFT is
timed on the model as transformers makes it, too. Weights are random, since speed does not depend on them. Language
models have rows of E2E's lengths in batches of 8, encoders MRPC's in batches of 16, as in the paper.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from pathlib import Path

import loralib
import torch
import transformers
from peft import LoraConfig, get_peft_model
from torch import Tensor, nn

from costs.benchmark_e2e import BATCH, LABEL_SMOOTHING, e2e_like_rows
from costs.benchmark_glue import batches, mrpc_like_rows
from costs.timing import AS_IT_COMES, Step, memory_above_weights, ratio, timings
from families import FAMILIES, family_of, head_parameters, layers
from lora import LoRAConfig, add_lora, projections
from models import base
from tasks.e2e.loss import completion_loss
from training.batches import Batch, pad_right
from training.precision import keep_frozen_in_bfloat16
from training.quick_layers import use_quick_layers

BASES = ("gpt2", "roberta-base", "roberta-large", "minilm", "smollm2-135m")
IN_BFLOAT16 = ("smollm2-135m",)  # as its runs do
DROPOUTS = (0.0, 0.1)
RANK, ALPHA = 4, 32
MEMORY = (("gpt2-medium", 64), ("roberta-base", 512))  # short rows, where LoRA saves most, and long ones


def random_model(name: str) -> nn.Module:
    """The architecture with random weights, training; an encoder has a head of two classes."""
    family = FAMILIES[base(name).family]
    head = {"num_labels": 2} if family.head else {}
    torch.manual_seed(0)
    return getattr(transformers, family.model)(getattr(transformers, family.config)(**base(name).shape, **head)).train()


def typical_batch(name: str) -> Batch:
    """Rows of the usual length for the model, padded to the longest."""
    if FAMILIES[base(name).family].head:
        filled = batches(mrpc_like_rows(800, base(name).shape.get("vocab_size", 30522)), by_length=True)
        return filled[len(filled) // 2]
    rows = sorted(
        e2e_like_rows(BATCH * 50, base(name).shape.get("vocab_size", 50257)), key=lambda r: len(r["input_ids"])
    )
    return pad_right(rows[25 * BATCH : 26 * BATCH])


def loss_of(model: nn.Module, batch: Batch) -> Tensor:
    """The loss that is trained: of the completion, or of the classes."""
    head = family_of(model).head
    return model(**batch).loss if head else completion_loss(model, batch, LABEL_SMOOTHING)


def with_lora(model: nn.Module, dropout: float) -> None:
    add_lora(model, LoRAConfig(rank=RANK, alpha=ALPHA, dropout=dropout))


def with_peft(model: nn.Module, dropout: float, rank: int = RANK) -> None:
    """PEFT's pairs in place, on query and value; on GPT-2 one over all of `c_attn`, which it cannot split."""
    names = {"gpt2": ["c_attn"], "llama": ["q_proj", "v_proj"], "deberta-v2": ["query_proj", "value_proj"]}
    chosen = names.get(model.config.model_type, ["query", "value"])
    how = {"r": rank, "lora_alpha": ALPHA, "lora_dropout": dropout, "target_modules": chosen}
    get_peft_model(model, LoraConfig(**how, fan_in_fan_out=model.config.model_type == "gpt2"))


def with_loralib(model: nn.Module, dropout: float) -> None:
    """The authors' MergedLinear in the place of GPT-2's `c_attn`, with pairs on query and value."""
    for layer in layers(model):
        old = layer.attn.c_attn
        width, wide = old.weight.shape
        new = loralib.MergedLinear(width, wide, r=RANK, lora_alpha=ALPHA, lora_dropout=dropout,
                                   enable_lora=[True, False, True])  # fmt: skip
        new.weight.data, new.bias.data = old.weight.data.T.contiguous(), old.bias.data
        layer.attn.c_attn = new
    loralib.mark_only_lora_as_trainable(model)


def fully(model: nn.Module, dropout: float) -> None:
    """Full fine-tuning: nothing is added and nothing frozen."""


def frozen(model: nn.Module, dropout: float) -> None:
    """Nothing is trained; the gradient goes back to the outputs of the first layer's query and value."""
    model.requires_grad_(False)
    for name, module in layers(model)[0].named_modules():
        if {"query", "value"} & set(projections(f"0.{name}")):
            module.register_forward_hook(lambda module, inputs, output: output.requires_grad_(True))


METHODS: dict[str, Callable[[nn.Module, float], None]] = {
    "ours": with_lora, "PEFT": with_peft, "loralib": with_loralib, "full": fully, "frozen": frozen,
    f"PEFT{AS_IT_COMES}": with_peft,
}  # fmt: skip


def prepared(name: str, method: str, dropout: float = 0.0) -> nn.Module:
    """A base model with a method of METHODS, its head trained too if it has one, as it is timed."""
    model = random_model(name)
    METHODS[method](model, dropout)
    if method not in ("full", "frozen"):
        for parameter in head_parameters(model).values():
            parameter.requires_grad_(True)
    if not method.endswith(AS_IT_COMES):
        if name in IN_BFLOAT16:
            keep_frozen_in_bfloat16(model)
        model.set_attn_implementation("eager")
        use_quick_layers(model)
    return model


def stepping(name: str, method: str, dropout: float = 0.0, batch: Batch | None = None) -> Step:
    """One training step of a `prepared` model."""
    model, batch = prepared(name, method, dropout), typical_batch(name) if batch is None else batch
    in_bfloat16 = name in IN_BFLOAT16
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-4) if trained else None

    def step() -> None:
        with torch.autocast("cpu", torch.bfloat16, enabled=in_bfloat16):
            loss = loss_of(model, batch)
        loss.backward()
        if optimizer:
            optimizer.step()
            optimizer.zero_grad()

    return step


def training(repetitions: int, data_dir: Path | None = None) -> dict[str, list[float]]:
    """Ratios of a step's time, each with its interval, on every model of BASES."""
    measured = {}
    for name in BASES:
        others = ["PEFT", f"PEFT{AS_IT_COMES}"] + ["loralib"] * (name == "gpt2")
        steps = {
            (method, dropout): stepping(name, method, dropout) for method in ("ours", *others) for dropout in DROPOUTS
        }
        steps |= {(method, 0.0): stepping(name, method) for method in ("full", "frozen")}
        seconds = timings(steps, repetitions, warmup=2)
        measured[f"{name}: LoRA step / frozen model"] = ratio(seconds["ours", 0.0], seconds["frozen", 0.0])
        measured[f"{name}: full step / LoRA step"] = ratio(seconds["full", 0.0], seconds["ours", 0.0])
        for other in others:
            for dropout in DROPOUTS:
                key = f"{name}: {other} / ours, dropout {dropout:g}"
                measured[key] = ratio(seconds[other, dropout], seconds["ours", dropout])
        del steps
    return measured


def _memory_batch(name: str, length: int) -> Batch:
    ids = torch.randint(1, base(name).shape.get("vocab_size", 50257), (BATCH, length))
    encoder = FAMILIES[base(name).family].head
    return {"input_ids": ids, "labels": torch.zeros(BATCH, dtype=torch.long) if encoder else ids}


def _memory_step(name: str, length: int, method: str) -> Step:
    return stepping(name, method, batch=_memory_batch(name, length))


def activation_bytes(model: nn.Module, batch: Batch) -> int:
    """What a forward pass keeps for the backward one, without the parameters; memory that several share counts once."""
    parameters = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    sizes: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        if (memory := tensor.untyped_storage()).data_ptr() not in parameters:
            sizes[memory.data_ptr()] = memory.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        loss = loss_of(model, batch)  # as long as it is there, so is what it was made of
    del loss
    return sum(sizes.values())


def memory(repetitions: int, data_dir: Path | None = None) -> dict[str, float]:
    """Peak memory of training above the weights, and what it is of, in GiB, for each model and length of MEMORY.

    The peak is measured. Gradients, the optimizer's two moments (float32) and activations are counted; they are more
    together than the peak, since activations go while gradients come.
    """
    measured = {}
    for name, length in MEMORY:
        above, title = {}, f"{name}, batch {BATCH}, length {length}"
        for method in ("ours", "full"):
            above[method] = memory_above_weights(partial(_memory_step, name, length), method)
            model = prepared(name, method)
            trained = 4 * sum(p.numel() for p in model.parameters() if p.requires_grad)
            parts = {"gradients": trained, "optimizer": 2 * trained, "peak above the weights": above[method]}
            parts["activations"] = activation_bytes(model, _memory_batch(name, length))
            measured |= {f"{title}: GiB of {part}, {method}": size / 2**30 for part, size in parts.items()}
        weights = 4 * sum(math.prod(p.shape) for p in model.parameters())
        whole = {method: size + weights for method, size in above.items()}
        measured[f"{title}: GiB of weights"] = weights / 2**30
        measured[f"{title}: LoRA r=4 / full (peak memory above the weights)"] = above["ours"] / above["full"]
        measured[f"{title}: full / LoRA r=4 (peak memory with the weights)"] = whole["full"] / whole["ours"]
    return measured
