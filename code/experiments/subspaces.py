"""The adapters whose subspaces are compared (section 7): LoRA on query and value at three ranks.

table3/smollm2-135m/lora-r1, .../lora-r8, .../lora-r64     at `cpu`: rows of Table 3, whose adapters are kept
subspaces/gpt2-mini/e2e-builtin/lora-r1, ...               at `quick`: 50 steps, which prove the pipeline
"""

from __future__ import annotations

from dataclasses import replace

from experiments.e2e import E2E_EXPERIMENTS
from experiments.settings import Experiment, declare

RANKS = (1, 8, 64)
ROWS = {  # base -> where its rows `lora-r1`, `lora-r8` and `lora-r64` are
    "gpt2-mini": "subspaces/gpt2-mini/e2e-builtin",
    "smollm2-135m": "table3/smollm2-135m",
    "smollm2-135m-base": "table3/smollm2-135m-base",
}


def _quick() -> list[Experiment]:
    plain = next(e.settings for e in E2E_EXPERIMENTS if e.name == "table3/gpt2-mini/e2e-builtin/lora-r8")
    return [
        experiment
        for rank in RANKS
        for experiment in declare(
            "subspaces", f"lora-r{rank}", f"LoRA r={rank} on query and value of {{model}} on {{task}}, 400 rows",
            {"quick": replace(plain, rank=rank, train_rows=400, evaluate="selection")},
        )
    ]  # fmt: skip


SUBSPACE_EXPERIMENTS = tuple(_quick())
