"""An adapter's folder for vLLM and SGLang: its numbers in the part of PEFT's layout that both engines take.

    export_for_engines(model, folder, target)      code/serving/README.md says how to start the engines on `target`

What their loaders refuse or misread, and what stands in `target` instead:

* Both take one rank r and one scale alpha / r from the settings, and leave PEFT's patterns aside. SGLang wants r rows
  in every A. So all pairs have the highest rank, filled up with zeros, and one scale.
* SGLang stacks query, key and value, and gate and up. What the adapter leaves out of them gets a pair of zeros.
* SGLang's older loaders know matrices by the last part of their names. Those are the targets, in every layer.
* vLLM refuses `modules_to_save`, and any tensor that is no pair. An adapter with a head is refused here.
* Neither engine has LoRA for GPT-2's packed c_attn or for our encoders, so these are refused here too.

vLLM: https://github.com/vllm-project/vllm/blob/532cc2581840104cf00297b7ea6a187420456403/vllm/lora/lora_model.py and
peft_helper.py beside it. SGLang: lora.py, mem_pool.py and utils.py in
https://github.com/sgl-project/sglang/tree/01235a1633d19644d861f3542011bf35aeaee114/python/sglang/srt/lora
"""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path

import torch
from torch import nn

from adapter_files import CONFIG_FILE, PREFIX, WEIGHTS_FILE, base_fingerprint, whole_folder, write_tensors
from serving.reading import A_NAME, B_NAME, matrices, read_adapter

STACKED = (("q_proj", "k_proj", "v_proj"), ("gate_proj", "up_proj"), ("o_proj",), ("down_proj",))
MERGE = "merge_lora, remove_lora and save_pretrained make a plain model, which the engines serve"


def export_for_engines(model: nn.Module, folder: str | Path, target: str | Path) -> None:
    """Write the adapter in `folder`, of this plain base model, as a folder that vLLM, SGLang and PEFT load.

    Raises ValueError if the folder is damaged or of another base, or if the engines could not serve the adapter.
    """
    adapter = read_adapter(Path(folder), model, partial(base_fingerprint, model))
    adapted, modules = {name.rpartition(".")[2] for name in adapter.pairs}, matrices(model)
    if adapter.heads or not adapted <= {leaf for stack in STACKED for leaf in stack}:
        found = f"a head ({', '.join(adapter.heads)})" if adapter.heads else f"pairs for {', '.join(sorted(adapted))}"
        raise ValueError(f"expected pairs for Llama's matrices alone in {folder}, found {found}; {MERGE}")
    targets = [leaf for stack in STACKED if adapted & {*stack} for leaf in stack]
    rank, scale = max(len(pair.A) for pair in adapter.pairs.values()), next(iter(adapter.pairs.values())).scale
    tensors = {}
    for name, module in modules.items():
        if name.rpartition(".")[2] in targets:
            d_out, d_in = module.weight.shape
            A, B = torch.zeros(rank, d_in), torch.zeros(d_out, rank)
            if pair := adapter.pairs.get(name):
                A[: len(pair.A)] = pair.A
                for rows, columns, block in pair.blocks:
                    B[rows, columns] = block.T * (pair.scale / scale)
            tensors |= {PREFIX + name + A_NAME: A, PREFIX + name + B_NAME: B}
    alpha = scale * rank
    settings = {
        "peft_type": "LORA", "task_type": "CAUSAL_LM", "r": rank,
        "lora_alpha": int(alpha) if alpha == int(alpha) else alpha, "lora_dropout": 0.0, "bias": "none",
        "target_modules": targets, "modules_to_save": None, "fan_in_fan_out": False, "inference_mode": True,
        "base_model_name_or_path": model.name_or_path,
    }  # fmt: skip
    with whole_folder(Path(target)) as new:
        write_tensors(tensors, new / WEIGHTS_FILE, {"format": "pt"})
        (new / CONFIG_FILE).write_text(json.dumps(settings, indent=2) + "\n", encoding="utf-8")
