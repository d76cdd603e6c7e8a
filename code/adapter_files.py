"""The folder of a LoRA adapter: what was trained, and nothing of the base model that it was trained on.

    save_lora(model, folder)     adapter_model.safetensors and adapter_config.json, PEFT's names and layout
    load_lora(model, folder)     puts it on the plain base model, or refuses another model

PEFT has one pair for each matrix, `lora.py` one for each projection. In the running example, `c_attn` of GPT-2 small
(768 -> 2304) with r = 4 and the targets query and value:

    in the model     A (8, 768)     B (1536, 4)    query's (768, 4) above value's (768, 4)
    in the folder    A (8, 768)     B (2304, 8)    query's in rows 0 to 767 and columns 0 to 3, value's in rows 1536 to
                                                   2303 and columns 4 to 7, zero elsewhere: the key stays as it was

The header of the weights file keeps the targets, a fingerprint of the base model and a checksum of all the rest, so
that damage and edits are found. Besides PyTorch and safetensors this needs `lora.py` only, and can be copied with it.
"""

import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from lora import WRAPPER, LoRAConfig, add_lora, lora_layers, merge_lora, projections, remove_lora, sound_layers

WEIGHTS_FILE, CONFIG_FILE, PREFIX = "adapter_model.safetensors", "adapter_config.json", "base_model.model."  # PEFT's
OTHER_THAN_PLAIN = ("use_dora", "use_rslora", "alora_invocation_tokens", "layer_replication")
PATTERNS, COPIED = ("rank_pattern", "alpha_pattern"), r"\.(original_module|modules_to_save)(?=\.)"
NO_MATTER = "base_model_name_or_path"  # a setting that may be edited: a place, not what was learnt


def inside(model: nn.Module) -> nn.Module:
    """The model itself, without torch.compile or a parallel wrapper around it, whose names no plain model has."""
    while len(children := dict(model.named_children())) == 1 and re.fullmatch(WRAPPER, *children):
        [model] = children.values()
    return model


def plain_name(name: str) -> str:
    """A parameter's or module's name in the plain model: neither beside a pair nor in a wrapper."""
    return re.sub(rf"\bbase_layer(\.|$)|{WRAPPER}", "", name).rstrip(".")


def base_parameters(model: nn.Module, once: bool = True) -> dict[str, nn.Parameter]:
    """All parameters but the pairs, by their names in the plain model: a tied one by its first name, or by each."""
    return {plain_name(n): p for n, p in model.named_parameters(remove_duplicate=once) if ".lora_" not in n}


@contextmanager
def taken_apart(model: nn.Module) -> Iterator[None]:
    """W0 and the pairs as they are on their own, in a merged model too, which is merged again afterwards."""
    merged = [layer for layer in lora_layers(model).values() if layer.unmerged is not None]
    for layer in merged:
        layer.unmerge()
    try:
        yield
    finally:
        if merged:
            merge_lora(model)


def base_fingerprint(model: nn.Module, without: dict | frozenset = frozenset()) -> str:
    """SHA-256 of the base's names, shapes and bfloat16 values (a bfloat16 copy has the same), less `without`."""
    digest = hashlib.sha256()
    with taken_apart(model):
        for name, parameter in sorted(base_parameters(model).items()):
            if name not in without:
                digest.update(f"{name} {tuple(parameter.shape)}\n".encode())
                digest.update(parameter.detach().to("cpu", torch.bfloat16).flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


def checksum(tensors: dict[str, Tensor], *facts: Any) -> str:
    """SHA-256 of tensors by name, with their types and shapes, and of what JSON can express."""
    digest = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return digest.hexdigest()


@contextmanager
def whole_folder(folder: Path) -> Iterator[Path]:
    """A new folder in or beside `folder`; when its files are written they take their places in it, else none does."""
    new = (folder if folder.is_dir() else folder.parent) / f".{folder.name}.{os.getpid()}.new"
    shutil.rmtree(new, ignore_errors=True)  # of a process of this number that was killed
    new.mkdir(parents=True)
    try:
        yield new
        if folder.exists():
            for file in new.iterdir():
                file.replace(folder / file.name)
        else:
            new.rename(folder)
    finally:
        shutil.rmtree(new, ignore_errors=True)


def write_tensors(tensors: dict[str, Tensor], file: Path, header: dict[str, str]) -> None:
    """A safetensors file; ValueError, with the tensor's name, for NaN or infinity."""
    if odd := [name for name, tensor in tensors.items() if not tensor.isfinite().all()]:
        raise ValueError(f"expected numbers to save, found NaN or infinity in {odd[0]}: its training diverged")
    copies = {name: tensor.detach().clone(memory_format=torch.contiguous_format) for name, tensor in tensors.items()}
    file.write_bytes(save(copies, header))  # copies, since two names may share their memory


def read_tensors(file: Path, entry: str) -> tuple[dict, dict[str, Tensor]]:
    """One entry of a safetensors file's header, parsed from JSON ({} if absent), and all tensors by name.

    Raises ValueError if the file is missing, cut short or of another format, or a tensor is not of finite numbers.
    """
    try:
        if not file.is_file():  # a pipe would be waited for
            raise FileNotFoundError(f"no file {file.name}")
        with safe_open(file, "pt") as opened:
            header = json.loads((opened.metadata() or {}).get(entry, "{}"))
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118, not a dict
        if not isinstance(header, dict):
            raise ValueError(f"{type(header).__name__} as the entry {entry} of its header")
        for name, tensor in tensors.items():
            if not (tensor.is_floating_point() and tensor.itemsize > 1 and tensor.isfinite().all()):
                raise ValueError(f"{tensor.dtype} or NaN or infinity in {name}")
    except (OSError, SafetensorError, ValueError, RecursionError) as error:
        raise ValueError(
            f"expected a whole {file.name} of finite numbers in {file.parent}, found {error!r}; save or copy it again "
            "(a pickle is never opened, it can run code)"
        ) from error
    return header, tensors


def not_for_this_model(wanted: set[tuple], present: set[tuple], model: nn.Module, source: object, remedy: str) -> str:
    """The error for a refused file or folder: the first three tensors, (name, *shape), that only one side has."""
    missing, further = sorted(wanted - present)[:3], sorted(present - wanted)[:3]
    return f"{source} is not for this {type(model).__name__}: expected {missing}, found {further}; {remedy}"


def save_lora(model: nn.Module, folder: str | Path) -> None:
    """Write the pairs and every other trained parameter (a head) as a folder that PEFT can read too, whole or not.

    A merged model stays merged. PEFT, if it saves the folder again, keeps the pairs, whole modules and biases.
    Raises ValueError for no LoRA, for NaN or infinity, and for pairs that are not one a projection and of one config.
    """
    layers = {plain_name(name): layer for name, layer in sound_layers(model).items()}
    if not layers:
        raise ValueError("expected LoRA layers to save, found none in the model: add_lora(model, config) comes first")
    config, transposed = next((layer.config, layer.transposed) for layer in layers.values())
    scale, own = config.alpha / config.rank, {n: (layer.config, layer.scaling) for n, layer in layers.items()}
    odd = [f"one over all of {n}" for n, la in layers.items() if len(la.weight) != la.part_size * len(projections(n))]
    if odd := odd + [f"another config or scale at {n}" for n in own if own[n] != (config, scale)]:
        raise ValueError(f"expected a pair of one config for each projection, found {odd[0]}: use save_trained")
    with taken_apart(model):
        for parameter in (p for p in model.parameters() if p.requires_grad):
            parameter.data = parameter.data.contiguous()  # as it will be when loaded, to the last bit of the output
        base = base_parameters(model, once=False)  # PEFT would take a tied parameter for trained under one name only
        trained = {name: parameter for name, parameter in base.items() if parameter.requires_grad}
        pairs = {f"{name}.lora_A.weight": layer.lora_A for name, layer in layers.items()}
        pairs |= {f"{name}.lora_B.weight": layer.wide_B().T for name, layer in layers.items()}
        settings = dict(peft_type="LORA", r=config.rank, lora_alpha=config.alpha, lora_dropout=config.dropout)
        settings |= _patterns(layers, config) | _kept_by_peft(base, layers)
        settings |= dict(target_modules=list(layers), inference_mode=True, fan_in_fan_out=transposed)
        header = {"targets": list(config.targets), "base_sha256": base_fingerprint(model, without=trained)}
        header["sha256"] = checksum(trained | pairs, header, settings)
        settings[NO_MATTER] = getattr(inside(model), "name_or_path", None)
        beside = {f"{name}.{own}": f"{name}.base_layer.{own}" for name in layers for own in ("weight", "bias")}
        stored = pairs | {beside.get(name, name): parameter for name, parameter in trained.items()}
        with whole_folder(Path(folder)) as new:
            write_tensors({PREFIX + n: t for n, t in stored.items()}, new / WEIGHTS_FILE, {"lora": json.dumps(header)})
            (new / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")


def _patterns(matrices: Iterable[str], config: LoRAConfig) -> dict[str, dict[str, float]]:
    """PEFT's settings where a matrix has k > 1 pairs: for PEFT it is one of rank k r, with the same alpha / r."""
    pairs = {name: len({*projections(name)} & {*config.targets}) for name in matrices}
    wide = {name: k for name, k in pairs.items() if k > 1}
    values = ({name: factor * k for name, k in wide.items()} for factor in (config.rank, config.alpha))
    return dict(zip(PATTERNS, values, strict=True)) if wide else {}


def blocks_of(name: str, B: Tensor, rank: int) -> list[tuple[int, int]]:
    """(part of the output, block of columns) where PEFT's pair over a packed matrix is not 0; [] if they share any."""
    parts, k = len(projections(name)), B.shape[-1] // rank
    if parts > 1 and B.numel() == len(B) // parts * parts * k * rank:
        blocks = B.view(parts, -1, k, rank).ne(0).any(dim=3).any(dim=1).nonzero().tolist()  # in order of the parts
        if sorted({block for _, block in blocks}) == [block for _, block in blocks]:
            return [(part, block) for part, block in blocks]
    return []


def _kept_by_peft(base: dict[str, nn.Parameter], layers: dict[str, nn.Module]) -> dict[str, Any]:
    """PEFT's settings for what is trained beside the pairs: modules of which all is trained, and else biases."""
    frozen = {name.rpartition(".")[0] for name, parameter in base.items() if not parameter.requires_grad}
    whole = sorted({name.rpartition(".")[0] for name in base} - frozen - layers.keys())
    lone = {n for n, p in base.items() if p.requires_grad and "bias" in n and n.rpartition(".")[0] not in whole}
    some = {"bias": "lora_only" if lone <= {f"{name}.bias" for name in layers} else "all"} if lone else {}
    return {"modules_to_save": whole} | some


def load_lora(model: nn.Module, folder: str | Path) -> list[str]:
    """Add the pairs in a folder to the plain base model they were trained on; returns the names of the adapted modules.

    The folder is save_lora's, or PEFT's with plain LoRA on matrices of one projection each. Raises ValueError, and
    leaves the model plain, if the folder is incomplete or damaged, or its base, names or shapes are not this model's.
    """
    settings, header, tensors = read_folder(Path(folder))
    config, heads = _config(settings, header, tensors, Path(folder)), settings.get("modules_to_save") or []
    base = base_parameters(model, once=False)
    named = {name for name in base if name in tensors or any(f".{head}." in f".{name}" for head in heads)}
    tied = {name for name, p in base.items() if not header and any(p is base[other] for other in named)}
    trained = {name: base[name] for name in named | tied}
    fingerprint = base_fingerprint(model, without=trained)
    add_lora(model, config)
    layers = {plain_name(name): layer for name, layer in lora_layers(model).items()}
    wanted = {(n, *p.shape) for n, p in trained.items()} | {("base weights", fingerprint)}
    wanted |= {(f"{n}.lora_A.weight", *layer.lora_A.shape) for n, layer in layers.items()}
    wanted |= {(f"{n}.lora_B.weight", len(layer.weight), len(layer.lora_A)) for n, layer in layers.items()}
    heads = {n: tensors[n].double() for n in trained if n in tensors}
    apart = {n for n in heads for m in heads if base[n] is base[m] and not torch.equal(heads[n], heads[m])}
    present = {(f"{n} apart from the one it is tied to" if n in apart else n, *t.shape) for n, t in tensors.items()}
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
    return list(lora_layers(model))


def read_folder(folder: Path) -> tuple[dict[str, Any], dict, dict[str, Tensor]]:
    """The settings, the header ({} in PEFT's folder), and the tensors by the plain model's names.

    Raises ValueError if a file is not whole, is not what was saved, or is no plain LoRA.
    """
    file, remedy = folder / CONFIG_FILE, "save or copy it again"
    try:
        if not file.is_file():
            raise FileNotFoundError(f"no file {CONFIG_FILE}")
        settings = json.loads(file.read_text(encoding="utf-8"))
        if not isinstance(settings, dict):
            raise TypeError(f"a {type(settings).__name__}, not settings by name")
        odd = {option for option in OTHER_THAN_PLAIN if settings.get(option)}
        odd |= {settings.get("init_lora_weights") or True} - {True, "gaussian"}  # "pissa", say, changes the base
        heads = settings.get("modules_to_save") or []
        if not all(isinstance(head, str) for head in heads):
            raise TypeError(f"modules_to_save={heads!r}")
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"expected a whole {CONFIG_FILE} in {folder}, found {error!r}; {remedy}") from error
    header, stored = read_tensors(folder / WEIGHTS_FILE, "lora")
    if (kind := settings.get("peft_type")) != "LORA" or (odd and not header):
        raise ValueError(f"expected plain LoRA in {folder}, found {kind} with {odd or 'no option'}")
    for name in [n for n in stored if n != (own := re.sub(COPIED, "", n)) and own in stored]:
        del stored[name]  # PEFT writes a trained module's bias up to three times
    tensors = {plain_name(name.removeprefix(PREFIX)): tensor for name, tensor in stored.items()}
    lost = [name for name in tensors if ".lora_" in name and _passed_over(name.partition(".lora_")[0], settings)]
    if lost and not header:
        raise ValueError(f"expected the pairs that {CONFIG_FILE} asks for in {folder}, found {lost[0]} too; {remedy}")
    rest = {key: value for key, value in header.items() if key != "sha256"}
    settings.pop(NO_MATTER, None)
    if len(tensors) < len(stored) or (header and header.get("sha256") != checksum(tensors, rest, settings)):
        raise ValueError(f"expected in {folder} what was saved, found it damaged or edited since; {remedy}")
    return settings, rest, tensors


def _passed_over(name: str, settings: dict[str, Any]) -> bool:
    """Whether PEFT would leave out this matrix. A regular expression of targets, which may be hostile, is not asked."""
    number, numbers = re.search(r"\.(\d+)\.", name), re.findall(r"\d+", str(settings.get("layers_to_transform")))
    lists = {o: ends for o in ("target_modules", "exclude_modules") if isinstance(ends := settings.get(o), list)}
    in_list = {option: f".{name}".endswith(tuple(f".{end}" for end in ends)) for option, ends in lists.items()}
    asked = in_list.get("target_modules", True) and not in_list.get("exclude_modules")
    return not asked or bool(numbers and number and number[1] not in numbers)


def _config(settings: dict[str, Any], header: dict, tensors: dict[str, Tensor], folder: Path) -> LoRAConfig:
    """LoRA's settings, one rank and alpha for all projections; ValueError if those of the folder are others."""
    try:
        Bs = {name.removesuffix(".lora_B.weight"): B for name, B in tensors.items() if name.endswith(".lora_B.weight")}
        parts = {name: [part for part, _ in blocks_of(name, B, settings["r"])] for name, B in Bs.items()}
        whole = {name: range(len(projections(name))) for name in Bs if Bs[name].any() or len(projections(name)) == 1}
        adapted = {projections(name)[i] for name in parts for i in parts[name] or whole.get(name, ())}
        targets = header["targets"] if header else adapted or LoRAConfig.targets  # untrained: a B of zeros tells none
        config = LoRAConfig(settings["r"], settings["lora_alpha"], settings["lora_dropout"], targets)
    except (LookupError, TypeError, ValueError, ArithmeticError) as error:
        found = f"found {error!r}; save or copy it again"
        raise ValueError(f"expected LoRA's settings in {folder / CONFIG_FILE}, {found}") from error
    patterns = {option: settings[option] for option in PATTERNS if settings.get(option)}
    if patterns != _patterns(Bs, config):
        found = f"rank_pattern and alpha_pattern {patterns or 'empty'} for {', '.join(config.targets)}"
        raise ValueError(f"expected plain LoRA of one rank and alpha in {folder}, found {found}")
    return config
