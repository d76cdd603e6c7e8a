"""The folder of a LoRA adapter: what was trained, and nothing of the base model that it was trained on.

    save_lora(model, folder)     adapter_model.safetensors and adapter_config.json, PEFT's names and layout
    load_lora(model, folder)     puts it on the plain base model, or refuses another model

PEFT has one pair for each matrix, `lora.py` one for each projection. In the running example, `c_attn` of GPT-2 small
(768 -> 2304) with r = 4 and the targets query and value:

    in the model     A (8, 768)     B (1536, 4)    query's (768, 4) above value's (768, 4)
    in the folder    A (8, 768)     B (2304, 8)    query's in rows 0 to 767 and columns 0 to 3, value's in rows 1536 to
                                                   2303 and columns 4 to 7, zero elsewhere: the key stays as it was

The header of the weights file keeps the targets and a fingerprint of the base model. Besides PyTorch and safetensors
this module needs `lora.py` only: the two files can be copied into another project.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from lora import LoRAConfig, add_lora, lora_layers, projections, remove_lora, unmerge_lora

WEIGHTS_FILE, CONFIG_FILE, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."  # PEFT's
OTHER_THAN_PLAIN = ("use_rslora", "rank_pattern", "alpha_pattern", "alora_invocation_tokens")  # options of PEFT


def base_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """All parameters but the pairs, by their names in the plain model."""
    return {n.replace(".base_layer.", "."): p for n, p in model.named_parameters() if ".lora_" not in n}


def base_fingerprint(model: nn.Module, without: dict | frozenset = frozenset()) -> str:
    """SHA-256 of the base's names, shapes and bfloat16 values (a bfloat16 copy has the same), less `without`."""
    digest = hashlib.sha256()
    for name, parameter in sorted(base_parameters(model).items()):
        if name not in without:
            digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
            digest.update(parameter.detach().to("cpu", torch.bfloat16).flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def read_tensors(file: Path, entry: str) -> tuple[dict, dict[str, Tensor]]:
    """One entry of a safetensors file's header, parsed from JSON ({} if absent), and all tensors by name.

    Raises ValueError if the file is missing, cut short or of another format.
    """
    try:
        with safe_open(file, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get(entry, "{}"))
            return header, {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, not a dict
    except (OSError, SafetensorError, json.JSONDecodeError) as error:
        raise ValueError(
            f"expected a whole {file.name} in {file.parent}, found {error!r}; save or copy it again "
            "(a pickle is never opened, it can run code)"
        ) from error


def not_for_this_model(
    wanted: set[tuple], present: set[tuple], model: nn.Module, source: str | Path, remedy: str
) -> str:
    """The error for a refused file or folder: the first three tensors, (name, *shape), that only one side has."""
    missing, further = sorted(wanted - present)[:3], sorted(present - wanted)[:3]
    return f"{source} is not for this {type(model).__name__}: expected {missing}, found {further}; {remedy}"


def save_lora(model: nn.Module, folder: str | Path) -> None:
    """Write the pairs, and every other trainable module (a head) whole, as a folder that PEFT can read too.

    A merged model is unmerged first. Raises ValueError for a model without LoRA, and for one pair over all of a matrix
    that makes several projections.
    """
    layers, base, folder = lora_layers(model), base_parameters(model), Path(folder)
    if not layers:
        raise ValueError("expected LoRA layers to save, found none in the model: add_lora(model, config) comes first")
    if packed := [n for n, layer in layers.items() if len(layer.weight) != layer.part_size * len(projections(n))]:
        raise ValueError(f"expected a pair for each projection, found one over all of {packed[0]}: use save_trained")
    unmerge_lora(model)
    heads = sorted({name.rpartition(".")[0] for name, parameter in base.items() if parameter.requires_grad})
    tensors = {name: parameter for name, parameter in base.items() if name.rpartition(".")[0] in heads}
    for name, layer in layers.items():
        tensors[f"{name}.lora_A.weight"] = layer.lora_A
        tensors[f"{name}.lora_B.weight"] = layer.wide_B().detach().T.contiguous()
    config = layer.config
    header = {"targets": config.targets, "base_sha256": base_fingerprint(model, without=tensors)}
    settings = dict(peft_type="LORA", r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout)
    settings |= dict(rank_pattern={name: len(layer.lora_A) for name, layer in layers.items()})  # k r; alpha / r is kept
    settings |= dict(alpha_pattern={name: layer.scaling * len(layer.lora_A) for name, layer in layers.items()})
    settings |= dict(target_modules=list(layers), modules_to_save=heads, inference_mode=True)
    settings |= dict(fan_in_fan_out=layer.transposed, base_model_name_or_path=getattr(model, "name_or_path", None))
    folder.mkdir(parents=True, exist_ok=True)
    save_file({PREFIX + n: t for n, t in tensors.items()}, folder / WEIGHTS_FILE, {"lora": json.dumps(header)})
    (folder / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n")


def load_lora(model: nn.Module, folder: str | Path) -> list[str]:
    """Add the pairs in a folder to the plain base model they were trained on; returns the names of the adapted modules.

    The folder is save_lora's, or PEFT's with plain LoRA on matrices of one projection each. Raises ValueError, and
    leaves the model plain, if the folder is incomplete or its base, names or shapes are not this model's.
    """
    settings, header, tensors = _read(Path(folder))
    targets = header["targets"] if header else sorted({target for name in tensors for target in projections(name)})
    heads = settings.get("modules_to_save") or []
    trained = {n: p for n, p in base_parameters(model).items() if any(f".{head}." in f".{n}" for head in heads)}
    fingerprint = base_fingerprint(model, without=trained)
    add_lora(model, LoRAConfig(settings["r"], settings["lora_alpha"], settings["lora_dropout"], tuple(targets)))
    layers = lora_layers(model)
    wanted = {(n, *p.shape) for n, p in trained.items()} | {("base weights", fingerprint)}
    wanted |= {(f"{n}.lora_A.weight", *layer.lora_A.shape) for n, layer in layers.items()}
    wanted |= {(f"{n}.lora_B.weight", len(layer.weight), len(layer.lora_A)) for n, layer in layers.items()}
    present = {(n, *t.shape) for n, t in tensors.items()}
    present |= {("base weights", header.get("base_sha256", fingerprint))}  # PEFT keeps no fingerprint
    if present != wanted:
        remove_lora(model)
        remedy = "load the model it is for, in float32 or bfloat16"
        raise ValueError(not_for_this_model(wanted, present, model, folder, remedy))
    for name, layer in layers.items():
        layer.lora_A.data.copy_(tensors[f"{name}.lora_A.weight"])
        layer.lora_B.data.copy_(torch.cat([tensors[f"{name}.lora_B.weight"][block] for block in layer.blocks]))
    for name, parameter in trained.items():
        parameter.requires_grad_(True).data.copy_(tensors[name])
    return list(layers)


def _read(folder: Path) -> tuple[dict, dict, dict[str, Tensor]]:
    """Settings, header ({} in PEFT's folder) and tensors by the model's names; ValueError if it is no plain LoRA."""
    try:
        settings = json.loads((folder / CONFIG_FILE).read_text())
    except (OSError, json.JSONDecodeError) as error:
        remedy = "save or copy it again"
        raise ValueError(f"expected a whole {CONFIG_FILE} in {folder}, found {error!r}; {remedy}") from error
    header, tensors = read_tensors(folder / WEIGHTS_FILE, "lora")
    odd = {option for option in OTHER_THAN_PLAIN if settings.get(option)}
    odd |= {settings.get("init_lora_weights") or True} - {True, "gaussian"}  # such as "pissa", which changes the base
    if (kind := settings.get("peft_type")) != "LORA" or (odd and not header):
        raise ValueError(f"expected plain LoRA in {folder}, found {kind} with {odd or 'no option'}")
    return settings, header, {name.removeprefix(PREFIX): tensor for name, tensor in tensors.items()}
