"""Speed and memory as ratios against a peer, in one run.

    python code/benchmark.py step       a LoRA training step of GPT-2 small against PEFT's
    python code/benchmark.py decode     batched beam search against one `generate` call an input
    python code/benchmark.py metrics    the E2E metrics with and without METEOR's jar

Absolute times depend on the machine; the ratios are what is claimed. Repetitions of the variants
alternate, medians are printed, and `results/benchmark/` keeps them. Weights are random (speed does
not depend on them) and row lengths follow E2E's: 31.5 +- 6.8 context and 27.7 +- 7.9 completion
tokens, separator and end included, as GPT-2's tokenizer gives on the development set.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import time
from collections.abc import Callable
from pathlib import Path
from statistics import median
from unittest import mock

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from pycocoevalcap.meteor.meteor import Meteor
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

import e2e_data
import meteor
import nlg_metrics
import paths
from batches import IGNORED, pad_right
from generation import DecodingSettings, end_token_ids, generate
from lora import LoRAConfig, add_lora
from models import load_model, load_tokenizer
from ptb_tokenizer import ptb_tokenize
from records import provenance, write_atomically
from training import completion_loss

BATCH = 8
OFFICIAL_LENGTH = 512
Rows = list[dict[str, list[int]]]


def e2e_like_rows(number: int, vocabulary: int, seed: int = 0) -> Rows:
    """Random tokens with E2E's lengths."""
    pick = np.random.default_rng(seed)
    rows = []
    for _ in range(number):
        context = int(np.clip(pick.normal(31.5, 6.8), 15, 41))
        completion = int(np.clip(pick.normal(27.7, 7.9), 7, 84))
        ids = pick.integers(1, vocabulary, context + completion).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * context + ids[context:]})
    return rows


def interleave(variants: dict[str, Callable[[], object]], repetitions: int, warmup: int = 1) -> dict[str, float]:
    """Median seconds of each variant; repetitions of all alternate, so that drift hits all alike."""
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for repetition in range(warmup + repetitions):
        for name, call in variants.items():
            started = time.perf_counter()
            call()
            if repetition >= warmup:
                seconds[name].append(time.perf_counter() - started)
    return {name: median(values) for name, values in seconds.items()}


def full_logits_loss(model: nn.Module, batch: dict[str, Tensor]) -> Tensor:
    """What Trainer with PEFT computes: logits at every position of the padded batch."""
    return model(input_ids=batch["input_ids"], labels=batch["labels"]).loss


def pad_to(rows: Rows, length: int) -> dict[str, Tensor]:
    batch = pad_right([*rows, {"input_ids": [0] * length, "labels": [IGNORED] * length}])
    return {key: value[:-1] for key, value in batch.items()}


def step_variant(name: str) -> Callable[[], None]:
    """One optimizer step on the next batch: `ours`, `peft` (full logits, padded to the longest), `official` (512)."""
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0))
    if name == "ours":
        add_lora(model, LoRAConfig(rank=4, alpha=32, dropout=0.1))
    else:
        settings = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["c_attn"], "fan_in_fan_out": True}
        model = get_peft_model(model, LoraConfig(**settings))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    rows = sorted(e2e_like_rows(BATCH * 50, 50257), key=lambda row: len(row["input_ids"]))
    random_rows = e2e_like_rows(BATCH * 50, 50257)
    turn = 0

    def step() -> None:
        nonlocal turn
        at = np.random.default_rng(turn).integers(0, 50)
        turn += 1
        if name == "ours":  # batches by length, as training.py forms them
            loss = completion_loss(model, pad_right(rows[at * BATCH : (at + 1) * BATCH]), label_smoothing=0.1)
        else:
            chosen = random_rows[at * BATCH : (at + 1) * BATCH]
            batch = pad_to(chosen, OFFICIAL_LENGTH) if name == "official" else pad_right(chosen)
            loss = full_logits_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def _resident(field: str) -> int:
    """VmRSS or VmHWM of this process in bytes (Linux)."""
    with open("/proc/self/status", encoding="ascii") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))


def _step_memory(name: str, queue: multiprocessing.Queue) -> None:
    step = step_variant(name)
    before = _resident("VmRSS")
    for _ in range(6):
        step()
    queue.put(_resident("VmHWM") - before)


def memory_above_weights(name: str) -> float:
    """Peak bytes of six steps above what the loaded model occupies, in a process of its own."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    process = context.Process(target=_step_memory, args=(name, queue))
    process.start()
    found = queue.get()
    process.join()
    return found


def benchmark_step(repetitions: int) -> dict[str, float]:
    variants = {name: step_variant(name) for name in ("ours", "peft")}
    seconds = interleave(variants, repetitions, warmup=2)
    slow = interleave({"ours": variants["ours"], "official": step_variant("official")}, max(3, repetitions // 5))
    memory = {name: memory_above_weights(name) for name in ("ours", "peft")}
    return {
        "PEFT, full logits, padded to the longest / ours (time)": seconds["peft"] / seconds["ours"],
        "padded to 512 / ours (time)": slow["official"] / slow["ours"],
        "ours / PEFT (peak memory above the weights)": memory["ours"] / memory["peft"],
        "seconds a step, ours": seconds["ours"],
        "seconds a step, PEFT": seconds["peft"],
        "seconds a step, padded to 512": slow["official"],
        "GiB above the weights, ours": memory["ours"] / 2**30,
        "GiB above the weights, PEFT": memory["peft"] / 2**30,
    }


def benchmark_decode(repetitions: int, inputs: int = 64) -> dict[str, float]:
    """`inputs` distinct E2E test contexts, or built-in ones, with beam 10: in batches, one by one, one by one by HF."""
    model, tokenizer = load_model("gpt2-mini"), load_tokenizer("gpt2-mini")
    contexts = [item.context for item in e2e_data.group_by_context(e2e_data.load_builtin("train"))][:inputs]
    settings = DecodingSettings()
    texts: dict[str, list[str]] = {}

    def batched() -> None:
        texts["batched"] = [g.text for g in generate(model, tokenizer, contexts, settings, progress=False)]

    def one_by_one() -> None:
        texts["single"] = [generate(model, tokenizer, [c], settings, progress=False)[0].text for c in contexts]

    @torch.inference_mode()
    def hugging_face() -> None:
        for context in contexts:
            ids = torch.tensor([[*tokenizer.encode(context), tokenizer.eos_token_id]])
            model.generate(
                ids, attention_mask=torch.ones_like(ids), num_beams=settings.beams, do_sample=False,
                length_penalty=settings.length_penalty, no_repeat_ngram_size=settings.no_repeat_ngram,
                max_new_tokens=settings.max_new_tokens, eos_token_id=end_token_ids(tokenizer),
            )  # fmt: skip

    seconds = interleave({"batched": batched, "single": one_by_one, "hf": hugging_face}, repetitions)
    same = sum(a == b for a, b in zip(texts["batched"], texts["single"], strict=True))
    return {
        "one call an input / batched (time)": seconds["single"] / seconds["batched"],
        "one `model.generate` an input / batched (time)": seconds["hf"] / seconds["batched"],
        "share of same outputs, batched and one by one": same / len(contexts),
        "seconds, batched": seconds["batched"],
        "seconds, one by one": seconds["single"],
        "seconds, one `model.generate` an input": seconds["hf"],
    }


def benchmark_metrics(repetitions: int, data_dir: Path | None = None) -> dict[str, float]:
    """On the real test set: the first reference of each input plays the output, the others its references."""
    groups = [
        g for g in e2e_data.group_by_context(e2e_data.load_e2e("test", "lora", data_dir)) if len(g.references) > 1
    ]
    outputs, references = [g.references[0] for g in groups], [g.references[1:] for g in groups]

    def without_meteor() -> None:
        with mock.patch.object(meteor.METEOR, "score", return_value=None):
            nlg_metrics.score(outputs, references)

    results = [[" ".join(ptb_tokenize(text))] for text in outputs]
    gold = [[" ".join(ptb_tokenize(text)) for text in group] for group in references]
    jar = Meteor()  # pycocoevalcap's own wrapper of the same jar

    def jar_alone() -> None:
        jar.compute_score(dict(enumerate(gold)), dict(enumerate(results)))

    calls = {"with": lambda: nlg_metrics.score(outputs, references), "without": without_meteor, "jar": jar_alone}
    seconds = interleave(calls, repetitions)
    return {
        "seconds without METEOR": seconds["without"],
        "seconds with METEOR": seconds["with"],
        "seconds of METEOR's jar alone": seconds["jar"],
        "seconds above the jar": seconds["with"] - seconds["jar"],
        "all / jar alone (time)": seconds["with"] / seconds["jar"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    benchmarks = {"step": benchmark_step, "decode": benchmark_decode, "metrics": benchmark_metrics}
    parser.add_argument("which", nargs="*", choices=[*benchmarks, []], help="all three when none is named")
    parser.add_argument("--repetitions", type=int, default=15)
    arguments = parser.parse_args()
    for name in arguments.which or benchmarks:
        measured = benchmarks[name](arguments.repetitions)
        print(f"{name} ({torch.get_num_threads()} threads, median of {arguments.repetitions}, interleaved)")
        for what, value in measured.items():
            print(f"  {what:58} {value:8.3f}")
        facts = {"threads": torch.get_num_threads(), "repetitions": arguments.repetitions, **provenance()}
        text = json.dumps({"measured": measured, **facts}, indent=1) + "\n"
        write_atomically(paths.RESULTS / "benchmark" / f"{name}.json", text)


if __name__ == "__main__":
    main()
