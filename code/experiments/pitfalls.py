"""The mistakes of earlier reproductions and their cost: each is the correct run with one setting changed.

Sixteen public reproductions were read to find what separates their numbers from the paper's. The comment on a mistake
names GitHub repositories that made it. GPT-2 and SmolLM2 on E2E (Table 3) and RoBERTa-base on MRPC (Table 2) show
its cost in score and time. The correct run beside it has the same rows and seeds:

    python code/reproduce.py sweep pitfalls --scale cpu
    python code/reproduce.py table pitfalls --scale cpu

`Experiment.against` names that run: `correct`, or `full-correct` for full fine-tuning, whose one
mistake is LoRA's learning rate.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments import e2e, glue, smollm2
from experiments.settings import Experiment, Settings, declare

Mistakes = dict[str, tuple[str, dict[str, Any]]]  # row -> what is wrong, the setting that makes it so
Rates = dict[str, dict[str, float]]  # scale -> method -> learning rate

E2E_ROWS = {"cpu": 10_000, "quick": 800}  # of the training split
E2E_RUNS = {
    method: {
        scale: replace(settings, train_rows=E2E_ROWS.get(scale))
        for scale, settings in e2e.at_scales(paper, paper.learning_rate).items()
    }
    for method, paper in {"lora": replace(e2e.E2E, rank=4, **e2e.LORA), "full": e2e.E2E}.items()
}
E2E_RATES: Rates = {
    "paper": {"lora": e2e.E2E.learning_rate, "full": e2e.FULL_LEARNING_RATE},
    "cpu": e2e.CPU_LEARNING_RATES,
    "quick": e2e.CPU_LEARNING_RATES,
}

# SmolLM2 at `cpu` alone, on fewer rows; it has no c_attn to pack.
SMOLLM2_SETTINGS = replace(smollm2.PAPER, **smollm2.CPU | {"train_rows": 2_000, "warmup_steps": 50})
SMOLLM2_RUNS = {
    "lora": {"cpu": replace(SMOLLM2_SETTINGS, **smollm2.lora("lora", 4))}, "full": {"cpu": SMOLLM2_SETTINGS},
}  # fmt: skip
SMOLLM2_RATES: Rates = {"cpu": {method: smollm2.RATES[method] for method in ("lora", "full")}}

# MRPC as the official script has it (alpha 16, where the paper prints 8), without the start from MNLI, at 128 tokens.
MRPC = replace(glue.GLUE, max_length=128)
MRPC_RUNS = {
    method: glue.at_scales(paper, paper.learning_rate)
    for method, paper in {"lora": replace(MRPC, **glue.LORA, rank=8, alpha=16.0, epochs=30), "full": MRPC}.items()
}
MRPC_CPU_RATES = {method: rates["mrpc"] for method, rates in glue.CPU_LEARNING_RATES.items()}
MRPC_RATES: Rates = {
    "paper": {"lora": 4e-4, "full": MRPC.learning_rate},
    "cpu": MRPC_CPU_RATES,
    "quick": MRPC_CPU_RATES,
}

BOTH: Mistakes = {
    # kyx4/CS4782-LoRA, bigbrainbrian7/LoRA_replication, msmrexe/pytorch-lora-from-scratch
    "transposed-init": ("A drawn with fan-in r: too large by sqrt(d_in / r)", {"transposed_init": True}),
    # Zjy-0601/lora-reproduction, hashir99x; after a warm-up edwinlin13/cs4782-lora-replication, denizbt/lora-cs4782
    "constant-learning-rate": ("neither warm-up nor decay", {"learning_rate_schedule": "constant"}),
    # denizbt/lora-cs4782
    "query-key": ("query and key adapted, not query and value", {"targets": ("query", "key")}),
    # kyx4/CS4782-LoRA, denizbt/lora-cs4782, and the official code itself
    "padded": (
        "every batch padded to the maximum: more time, other dropout",
        {"pad_to_maximum": True},
    ),
}
E2E_MISTAKES: Mistakes = BOTH | {
    # kyx4/CS4782-LoRA, edwinlin13/cs4782-lora-replication, anthonylitwin/odu-cs722-lora-repro
    "prompt-loss": ("loss on the prompt too", {"prompt_loss": True}),
    # edwinlin13/cs4782-lora-replication
    "alpha-equals-rank": ("alpha = r = 4, not 32: scale 1, not 8", {"alpha": 4.0}),
    # rohan-shankar/cs4782-lora-implementation, anthonylitwin/odu-cs722-lora-repro
    "packed-c-attn": ("one pair over all of c_attn, the key with it", {"packed_pair": True}),
    # edwinlin13/cs4782-lora-replication: full fine-tuning trains <MR> and <TEXT>, LoRA cannot
    "frozen-new-tokens": ("<MR> context <TEXT> with new tokens, left frozen", {"new_tokens": True}),
    # anthonylitwin/odu-cs722-lora-repro
    "untrained-end": ("no loss on the end token", {"end_loss": False}),
    # anthonylitwin/odu-cs722-lora-repro: each row of the test file against its own reference alone
    "single-reference": ("scored against the first reference only", {"single_reference": True}),
    # bigbrainbrian7/LoRA_replication
    "greedy": ("greedy decoding, no beams", {"beams": 1}),
    # zhenrys/LoRA-GPT2-E2E-pytorch-jittor, its Jittor half: --eval_len 32
    "capped-decoding": ("at most 32 new tokens, not 64", {"max_new_tokens": 32}),
}
MRPC_MISTAKES: Mistakes = BOTH | {
    # tn292/cs5782_final_project, denizbt/lora-cs4782
    "frozen-head": ("the new head is not trained", {"train_head": False}),
    # Zjy-0601/lora-reproduction
    "alpha-equals-rank": ("alpha = r = 8, not 16: scale 1, not 2", {"alpha": 8.0}),
    # Althealam/CS5782-LoRA-Final-Project, Zjy-0601/lora-reproduction, lucas-309/cs4782-lora, tn292/cs5782_final_project
    "few-epochs": ("3 epochs, not 30", {"epochs": 3}),
}
ONLY_AT_PAPER = ("few-epochs",)  # elsewhere the correct run has few as well


def _part(runs: dict[str, dict[str, Settings]], rates: Rates, mistakes: Mistakes) -> list[Experiment]:
    """The correct runs of LoRA and of full fine-tuning (method -> scale -> settings), and beside each its mistakes."""

    def rows(row: str, about: str, method: str, rate_of: str, changes: dict[str, Any]) -> list[Experiment]:
        correct = "correct" if method == "lora" else "full-correct"
        scales = ("paper",) if row in ONLY_AT_PAPER else runs[method]
        by_scale = {s: replace(runs[method][s], **changes, learning_rate=rates[s][rate_of]) for s in scales}
        against = None if row == correct else ("pitfalls", correct)
        return declare("pitfalls", row, f"{{task}}: {about}", by_scale, against=against)

    return [
        *rows("correct", "LoRA without a mistake", "lora", "lora", {}),
        *(e for row, (about, changes) in mistakes.items() for e in rows(row, about, "lora", "lora", changes)),
        # rahul2-byte, denizbt, Althealam, Zjy-0601, MZaranZahir; the other way round rohan-shankar
        *rows("learning-rate-of-full", "LoRA at the learning rate of full", "lora", "full", {}),
        *rows("full-correct", "full fine-tuning without a mistake", "full", "full", {}),
        *rows("full-learning-rate-of-lora", "full fine-tuning at the learning rate of LoRA", "full", "lora", {}),
    ]


PITFALL_EXPERIMENTS = (
    *_part(E2E_RUNS, E2E_RATES, E2E_MISTAKES), *_part(MRPC_RUNS, MRPC_RATES, MRPC_MISTAKES),
    *_part(SMOLLM2_RUNS, SMOLLM2_RATES, {row: m for row, m in E2E_MISTAKES.items() if row != "packed-c-attn"}),
)  # fmt: skip
