"""What is timed of a batch over many adapters (`serving/adapters.py`): on GPT-2 small, against one adapter and PEFT.

A row is a prompt of E2E's length; what follows it is one token, or an answer. Weights are random: speed does not depend
on them. PEFT has the same base model, the same folders and its own way of mixing, `adapter_names`.
"""

from __future__ import annotations

import gc
import random
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers import GPT2Config, GPT2LMHeadModel

from adapter_files import save_lora
from costs.timing import Step, ratio, resident, timings
from lora import LoRAConfig, add_lora, count_parameters, lora_layers, remove_lora
from models import base
from serving.adapters import AdapterBank
from tasks.e2e.beam_search import DecodingSettings, beam_search

PROMPT, TOKENS, VOCABULARY = 32, 16, 50257  # tokens of a prompt and of a timed answer
ROWS = {1: 16, 2: 16, 8: 16, 64: 64}  # adapters -> rows of the batch
REGISTERED, REQUESTS = 100, 1000


def base_model() -> GPT2LMHeadModel:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(**base("gpt2").shape)).eval().requires_grad_(False)
    model.generation_config.pad_token_id = model.config.eos_token_id
    return model


@contextmanager
def folders(number: int) -> Iterator[dict[str, Path]]:
    """So many adapters of the base, with random pairs of rank 4 on query and value, by name."""
    model = base_model()
    add_lora(model, LoRAConfig(rank=4, alpha=32))
    with TemporaryDirectory() as place:
        saved = {str(i): Path(place) / str(i) for i in range(number)}
        for folder in saved.values():
            for layer in lora_layers(model).values():
                nn.init.normal_(layer.lora_B, std=0.02)
            save_lora(model, folder)
        yield saved


def our_bank(saved: dict[str, Path]) -> AdapterBank:
    bank = AdapterBank(base_model())
    for name, folder in saved.items():
        bank.add(name, folder)
    return bank


def pefts(saved: dict[str, Path]) -> PeftModel:
    (first, folder), *others = saved.items()
    model = PeftModel.from_pretrained(base_model(), folder, adapter_name=first)
    for name, folder in others:
        model.load_adapter(folder, adapter_name=name)
    return model.eval()


def prompts(rows: int) -> Tensor:
    return torch.randint(1, VOCABULARY, (rows, PROMPT), generator=torch.Generator().manual_seed(rows))


def answering(model: nn.Module, bank: AdapterBank | None, names: list[str], tokens: int) -> Step:
    """The next token of each prompt, or a greedy answer of several; by PEFT where there is no bank."""
    ids, peft_names = prompts(len(names)), {} if bank else {"adapter_names": names}
    mask = torch.ones_like(ids)
    length = {"max_new_tokens": tokens, "min_new_tokens": tokens, "do_sample": False}

    @torch.inference_mode()
    def forward() -> None:
        if tokens == 1:
            model(input_ids=ids, logits_to_keep=1, **peft_names)
        else:
            model.generate(input_ids=ids, attention_mask=mask, **length, **peft_names)

    def through_bank() -> None:
        with bank.rows(names):
            forward()

    return through_bank if bank else forward


def mixed(repetitions: int, data_dir: Path | None = None) -> dict[str, float | list[float]]:
    """The next token, and a greedy answer, of batches over 1, 2, 8 and 64 adapters, and over the base alone."""
    measured = {}
    with folders(max(ROWS)) as saved:
        bank, peft_model = our_bank(saved), pefts(saved)
    for what, tokens in (("next token", 1), (f"{TOKENS} tokens", TOKENS)):
        for rows in sorted({*ROWS.values()}):
            kinds = {adapters: [str(i % adapters) for i in range(rows)] for adapters in (1, *ROWS) if adapters <= rows}
            kinds = {adapters: names for adapters, names in kinds.items() if adapters == 1 or ROWS[adapters] == rows}
            steps = {f"{n}": answering(bank.model, bank, names, tokens) for n, names in kinds.items()}
            steps |= {f"PEFT {n}": answering(peft_model, None, names, tokens) for n, names in kinds.items()}
            steps["none"] = answering(bank.model, bank, [None] * rows, tokens)
            seconds = timings(steps, repetitions)
            title = f"{what}, {rows} rows"
            for n in list(kinds)[1:]:
                against = {
                    "ours / one adapter": (f"{n}", "1"), "PEFT / ours": (f"PEFT {n}", f"{n}"),
                    "ours / the base alone": (f"{n}", "none"),
                }  # fmt: skip
                for what_over_what, (above, below) in against.items():
                    key = f"{title}, {n} adapters: {what_over_what} (time)"
                    measured[key] = ratio(seconds[above], seconds[below])
            measured |= {f"{title}: seconds, {n} adapters": median(seconds[f"{n}"]) for n in kinds}
    return measured


def beams(
    repetitions: int, data_dir: Path | None = None, rows: int = 16, adapters: int = 8
) -> dict[str, float | list[float]]:
    """Answers of 16 tokens by ten beams: our search over the bank, PEFT's `generate` over `adapter_names`."""
    names, settings = [str(i % adapters) for i in range(rows)], DecodingSettings(max_new_tokens=TOKENS)
    ids = prompts(rows)
    with folders(adapters) as saved:
        bank, peft_model = our_bank(saved), pefts(saved)

    def ours(names: list[str]) -> Step:
        def search() -> None:
            with bank.rows(names):
                beam_search(bank.model, ids.tolist(), [bank.model.config.eos_token_id], settings)

        return search

    @torch.inference_mode()
    def by_peft() -> None:
        length = {"max_new_tokens": TOKENS, "length_penalty": settings.length_penalty, "early_stopping": "never"}
        peft_model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), adapter_names=names, num_beams=settings.beams,
            do_sample=False, no_repeat_ngram_size=settings.no_repeat_ngram, **length,
        )  # fmt: skip

    seconds = timings({"mixed": ours(names), "one": ours(["0"] * rows), "PEFT": by_peft}, repetitions)
    return {
        f"{rows} rows, {adapters} adapters: ours / one adapter (time)": ratio(seconds["mixed"], seconds["one"]),
        f"{rows} rows, {adapters} adapters: PEFT's `generate` / ours (time)": ratio(seconds["PEFT"], seconds["mixed"]),
        "seconds, ours": median(seconds["mixed"]),
        "seconds, PEFT": median(seconds["PEFT"]),
    }


def requests(repetitions: int, data_dir: Path | None = None, number: int = REQUESTS) -> dict[str, float]:
    """Memory of 100 adapters, and 1,000 batches of four random rows, each compared with its adapter alone."""
    with folders(REGISTERED) as saved:
        bank = AdapterBank(base_model())
        bank.add("first", saved["0"])  # the fingerprint is made once
        gc.collect()
        before = resident("VmRSS")
        for name, folder in saved.items():
            bank.add(name, folder)
        gc.collect()
        registered = resident("VmRSS") - before
        model = base_model()
        add_lora(model, LoRAConfig(rank=4, alpha=32))
        pairs = 4 * REGISTERED * count_parameters(model)[0]
        remove_lora(model)
    tokens = prompts(REGISTERED)[:, :4]
    pick, wrong, sizes = random.Random(0), 0, []

    @torch.inference_mode()
    def answers(names: list[str | None]) -> Tensor:
        ids = tokens[[int(name or 0) for name in names]]
        with bank.rows(names):
            return bank.model(input_ids=ids, logits_to_keep=1).logits[:, 0]

    alone = {name: answers([name])[0] for name in (None, *bank.names[1:])}
    for _ in range(number):
        names = pick.choices([*alone], k=4)
        wrong += sum(
            not torch.allclose(a, alone[n], rtol=0, atol=1e-5) for a, n in zip(answers(names), names, strict=True)
        )
        sizes.append(resident("VmRSS"))
    settled = len(sizes) // 10
    return {
        f"{REGISTERED} adapters: memory / their parameters": registered / pairs,
        f"{number} mixed requests: rows unlike the adapter alone": wrong,
        f"{number} mixed requests: MiB grown after the first tenth": (sizes[-1] - sizes[settled]) / 2**20,
        f"MiB of {REGISTERED} adapters": registered / 2**20,
    }
