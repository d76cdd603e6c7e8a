"""What is done again and again leaves nothing behind: no memory, no open file, no process, no thread.

Memory is the process's own (RSS) after a warm-up. Allocators keep what they have, so that a real leak is told by its
growth over many rounds, and a negative control shows that so small a one is seen.
"""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from adapter_files import load_lora, save_lora
from lora import LoRAConfig, add_lora, lora_layers, merge_lora, remove_lora, unmerge_lora
from models import load_model, load_tokenizer
from tasks.catalogue import TASKS
from tasks.e2e import meteor
from tasks.e2e.beam_search import DecodingSettings, generate
from tasks.e2e.metrics import course_score, score
from tasks.e2e.slot_errors import slot_errors
from tasks.glue import metrics as glue_metrics
from test_training import run_training
from tiny_models import logits, tiny

MEGABYTE = 2**20
OUTPUTS = ["Zizzi is a cheap pub near the river .", "There is a family friendly place , Aromi ."] * 10
REFERENCES = [
    ["Zizzi is a cheap pub by the river .", "Zizzi , a pub , is cheap ."],
    ["Aromi is family friendly ."],
] * 10
MRS = ["name[Zizzi], eatType[pub], priceRange[cheap], area[riverside]", "name[Aromi], familyFriendly[yes]"] * 10


def held() -> dict[str, int]:
    """What this process holds now: bytes of memory, open files and sockets, child processes, threads, live tensors."""
    gc.collect()
    process = psutil.Process()
    return {
        "memory": process.memory_info().rss,
        "handles": process.num_handles() if hasattr(process, "num_handles") else process.num_fds(),
        "processes": len(process.children(recursive=True)),
        "threads": threading.active_count(),
        "tensors": sum(issubclass(type(o), torch.Tensor) for o in gc.get_objects()),
    }


def growth(act: Callable[[int], object], rounds: int, warm_up: int) -> dict[str, int]:
    for number in range(warm_up):
        act(number)
    before = held()
    for number in range(rounds):
        act(number)
    after = held()
    return {name: after[name] - before[name] for name in before}


def grows(found: dict[str, int], memory: int) -> list[str]:
    return [name for name, more in found.items() if more > (memory if name == "memory" else 0)]


def test_a_leak_would_be_seen(tmp_path):
    kept = []

    def leak(number: int) -> None:
        kept.append((torch.ones(250_000), (tmp_path / str(number)).open("w")))  # a megabyte and a file a round

    try:
        assert grows(growth(leak, 100, 5), 16 * MEGABYTE) == ["memory", "handles", "tensors"]
    finally:
        for _, file in kept:
            file.close()


@pytest.mark.parametrize("family", ["gpt2", "bert", "llama"])
def test_two_hundred_cycles_of_lora_leave_nothing(family, tmp_path, tally):
    model, plain = tiny(family), logits(tiny(family))

    def cycle(number: int) -> None:
        add_lora(model, LoRAConfig(2, targets=("query", "value", "mlp_out")))
        for layer in lora_layers(model).values():
            nn.init.normal_(layer.lora_B)
        merge_lora(model)
        logits(model)
        unmerge_lora(model)
        model.load_state_dict(model.state_dict())
        save_lora(model, tmp_path / "adapter")
        remove_lora(model)
        load_lora(model, tmp_path / "adapter")
        remove_lora(model)
        assert torch.equal(logits(model), plain)

    found = growth(cycle, 200, 100)  # by then the allocator holds what a cycle needs
    assert grows(found, 4 * MEGABYTE) == [], found
    assert [path.name for path in tmp_path.iterdir()] == ["adapter"]
    for _ in range(200):
        tally("leaks", "a cycle of adding, merging, saving, loading and removing", "nothing is left")


SCORED: dict[str, Callable[[], object]] = {
    "E2E scores with METEOR": lambda: score(OUTPUTS, REFERENCES),
    "course scores": lambda: course_score(OUTPUTS, REFERENCES),
    "slot errors": lambda: slot_errors(MRS, OUTPUTS),
    "GLUE scores": lambda: glue_metrics.score(TASKS["mnli"], [0, 1, 2] * 10, [0, 1, 1] * 10),
}


@pytest.mark.parametrize("name", SCORED)
def test_a_thousand_scorings_leave_nothing(name, tally):
    if "METEOR" in name and meteor.meteor_unavailable():
        pytest.skip(meteor.meteor_unavailable())
    found = growth(lambda _: SCORED[name](), 1000, 50)
    assert grows(found, 8 * MEGABYTE) == [], found
    if "METEOR" in name:
        meteor.METEOR.close()
        assert held()["processes"] == 0
    for _ in range(1000):
        tally("leaks", f"a scoring: {name}", "nothing is left")


def test_scoring_new_texts_every_time_leaves_no_more_than_its_cache_may_hold(tally):
    def scoring(number: int) -> None:
        outputs = [f"Zizzi {number} {i} is a pub ." for i in range(20)]
        score(outputs, [[text] for text in outputs])
        slot_errors(MRS, outputs)

    found = growth(scoring, 300, 20)
    assert grows(found, 16 * MEGABYTE) == [], found  # the tokenizer remembers 65,536 words
    for _ in range(300):
        tally("leaks", "a scoring of new texts", "nothing is left but remembered words")


def test_trainings_and_decodings_leave_nothing(tmp_path, tally):
    def training(number: int) -> None:
        run_training(Path(tmp_path, str(number)))

    found = growth(training, 10, 4)
    assert grows(found, 16 * MEGABYTE) == [], found
    model, tokenizer = load_model("gpt2-mini"), load_tokenizer("gpt2-mini")
    decoding = DecodingSettings(beams=2, max_new_tokens=4)
    found = growth(lambda i: generate(model, tokenizer, [f"name : {i}"], decoding, progress=False), 50, 10)
    assert grows(found, 8 * MEGABYTE) == [], found
    for _ in range(10):
        tally("leaks", "a training", "nothing is left")
    for _ in range(50):
        tally("leaks", "a decoding", "nothing is left")
