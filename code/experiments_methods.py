"""The methods that LoRA is compared with, and rank over time: the other rows of Tables 2 and 3, and what goes beyond.

    table3/gpt2-medium/adapter-h, table2/roberta-large/mrpc/adapter-h-0.8M   the baselines, each with its own grid of
    learning-rate/e2e/adapter-h/0.002                                        learning rates at `cpu`
    rank-over-time/gpt2/sequential-fixed-frozen, .../adaptive                one budget of rank, spent otherwise
    variants/gpt2/rank-stabilised, .../lora-plus, .../all-matrices           changes of one line

Widths and prefix lengths are those of the printed counts (tests/test_baselines.py). Rows that the paper takes from
prior work have that work's learning rate: Li & Liang (2021) for GPT-2 (gpt2/train_e2e.py of XiangLi1999/PrefixTuning
at 048d236), but PreLayer: theirs is of an MLP that makes the activations, which want far more where they are trained
as they are. For it, BitFit and the variants of LoRA the paper has no rate; theirs are the middle of a grid. Adapters
of RoBERTa-large are Table 9's (data/glue_hyperparameters.csv), without weight decay, which the scripts of the
official code do not set for them. BitFit and Adapter^D of RoBERTa-base are not described by the paper: they are
trained as LoRA's row is, at a rate usual for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import experiments_e2e as e2e
import experiments_glue as glue
from settings import Experiment, Settings

# The smaller models' learning rates. Where `learning-rate/...` is recorded at `cpu`, the best of its grid on the
# development set (E2E) or on held-out training rows (GLUE); else the middle of it (tests/test_experiments.py).
E2E_RATES = {
    "top2": 4e-3, "bitfit": 6.4e-2, "adapter-l": 1.6e-2, "adapter-l-11M": 4e-3, "adapter-h": 4e-3, "prelayer": 1.024,
    "rank-stabilised": 4e-3, "lora-plus": 1e-3, "all-matrices": 4e-3,
}  # fmt: skip
E2E_GRID = {  # row of Table 3 or of the variants -> rates
    "top2": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "bitfit": (1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1),
    "adapter-l": (8e-3, 1.6e-2, 3.2e-2, 6.4e-2),
    "adapter-l-11M": (2e-3, 4e-3, 8e-3, 1.6e-2),
    "adapter-h": (2e-3, 4e-3, 8e-3, 1.6e-2),
    "prelayer": (1.28e-1, 2.56e-1, 5.12e-1, 1.024, 2.048),
    "rank-stabilised": (2e-3, 4e-3, 8e-3, 1.6e-2),
    "lora-plus": (5e-4, 1e-3, 2e-3, 4e-3),
    "all-matrices": (2e-3, 4e-3, 8e-3, 1.6e-2),
}
GLUE_RATES = {
    "bitfit": {"mrpc": 4e-3, "rte": 1e-3}, "adapter-h": {"mrpc": 2e-3, "rte": 1e-3},
    "adapter-p": {"mrpc": 2e-3, "rte": 1e-3},
}  # fmt: skip
GLUE_GRID = {
    "bitfit": (1e-3, 2e-3, 4e-3, 8e-3),
    "adapter-h": (5e-4, 1e-3, 2e-3, 4e-3),
    "adapter-p": (5e-4, 1e-3, 2e-3, 4e-3),
}

# Table 3: row -> model, method, its size there and in gpt2-mini, learning rate, the paper's cell. The small sizes of
# adapters and prefixes have about as many parameters as LoRA r=4; the large ones of adapters as each other.
SMALL, LARGE, LARGE_H = {"bottleneck": 6}, {"bottleneck": 64}, {"bottleneck": 32}
E2E_ROWS: list[tuple[str, str, str, dict[str, int], dict[str, int], float, tuple[str, str] | None]] = [
    ("top2", "gpt2-medium", "top-layers", {"top_layers": 2}, {}, 5e-5, ("FT^Top2", "25.19M")),
    ("bitfit", "gpt2-medium", "bitfit", {}, {}, 1e-3, None),
    ("adapter-l", "gpt2-medium", "adapter-l", {"bottleneck": 6}, SMALL, 5e-5, ("Adapter^L", "0.37M")),
    ("adapter-l-11M", "gpt2-medium", "adapter-l", {"bottleneck": 224}, LARGE, 5e-5, ("Adapter^L", "11.09M")),
    ("adapter-h", "gpt2-medium", "adapter-h", {"bottleneck": 112}, LARGE_H, 2e-4, ("Adapter^H", "11.09M")),
    ("prelayer", "gpt2-medium", "prelayer", {"prefix_tokens": 14}, {"prefix_tokens": 16}, 1e-2, ("PreLayer", "0.35M")),
    ("adapter-l", "gpt2-large", "adapter-l", {"bottleneck": 8}, SMALL, 2e-4, ("Adapter^L", "0.88M")),
    ("adapter-l-23M", "gpt2-large", "adapter-l", {"bottleneck": 248}, LARGE, 2e-4, ("Adapter^L", "23.00M")),
    ("prelayer", "gpt2-large", "prelayer", {"prefix_tokens": 17}, {"prefix_tokens": 16}, 1e-2, ("PreLayer", "0.77M")),
]
NAMES = {"gpt2-medium": "GPT-2 M", "gpt2-large": "GPT-2 L"}
PAPER_GRID = {  # around the rates of the rows
    "top2": (2.5e-5, 5e-5, 1e-4, 2e-4),
    "bitfit": (2e-4, 5e-4, 1e-3, 2e-3),
    "adapter-l": (2.5e-5, 5e-5, 2e-4, 1e-3),
    "adapter-l-11M": (2.5e-5, 5e-5, 1e-4, 4e-4),
    "adapter-h": (5e-5, 1e-4, 2e-4, 4e-4),
    "prelayer": (1e-3, 3e-3, 1e-2, 3e-2),
    "rank-stabilised": (5e-5, 1e-4, 2e-4, 4e-4),
    "lora-plus": (1.25e-5, 2.5e-5, 5e-5, 1e-4),
    "all-matrices": (5e-5, 1e-4, 2e-4, 4e-4),
}


def _table3() -> list[Experiment]:
    found = []
    for row, model, method, size, mini, rate, cell in E2E_ROWS:
        settings = replace(e2e.E2E, model=model, method=method, learning_rate=rate, **size)
        changes = e2e.smaller(E2E_RATES["adapter-l-11M" if row == "adapter-l-23M" else row], **mini)
        cell = (NAMES[model], *cell) if cell else None
        found.append(Experiment(f"table3/{model}/{row}", f"{method} of {model} on E2E", settings, changes, cell=cell))
    return found


def _e2e_learning_rates() -> list[Experiment]:
    found = []
    for row, model, method, size, mini, *_ in E2E_ROWS:
        if model == "gpt2-medium":
            base = replace(e2e.E2E, model="gpt2", method=method, **size)
            found += e2e.learning_rates(row, base, E2E_GRID[row], **mini)
            found += e2e.paper_learning_rates(row, replace(base, model=model), PAPER_GRID[row])
    for row, facts in VARIANTS.items():
        found += e2e.learning_rates(row, replace(GPT2_LORA, **facts), E2E_GRID[row])
        found += e2e.paper_learning_rates(row, replace(GPT2_LORA, **facts), PAPER_GRID[row])
    return found


# Table 2: row of RoBERTa-base -> method, size there and in MiniLM, learning rate, the paper's cell.
MINILM = {"bitfit": {}, "adapter-h": {"bottleneck": 8}, "adapter-p": {"bottleneck": 16, "dropped_layers": 0}}
CPU_STARTS = {
    "bitfit": "roberta-base/mnli/bitfit",
    "adapter-h": "roberta-large/mnli/adapter-h-6.0M",
    "adapter-p": "roberta-large/mnli/adapter-p-3.0M",
}
BASE_ROWS: dict[str, tuple[str, dict[str, int], float, tuple[str, str]]] = {
    "bitfit": ("bitfit", {}, 1e-3, ("BitFit", "0.1M")),
    "adapter-d-0.3M": ("adapter-p", {"bottleneck": 48, "dropped_layers": 8}, 3e-4, ("Adpt^D", "0.3M")),
    "adapter-d-0.9M": ("adapter-p", {"bottleneck": 48}, 3e-4, ("Adpt^D", "0.9M")),
}


def _minilm(task: str, method: str, start: str, **changes: Any) -> dict[str, dict[str, Any]]:
    """What a row replaces at the smaller scales; at `cpu` RTE's starts from MNLI, as LoRA's does."""
    at = glue.smaller(task, glue.cpu_rate(GLUE_RATES[method], task), **MINILM[method] | changes)
    return at | {"cpu": at["cpu"] | glue.cpu_start(task, start)}


def _table2() -> list[Experiment]:
    found = []
    for row in glue.HYPERPARAMETERS:
        if (row["model"], row["variant"]) != ("roberta-base", "paper"):
            continue
        task = row["task"]
        for name, (method, size, rate, cell) in BASE_ROWS.items():
            settings = replace(
                glue.GLUE, task=task, method=method, **size, learning_rate=rate, batch_size=int(row["batch_size"]),
                epochs=int(row["epochs"]), max_length=int(row["max_length"]),
            )  # fmt: skip
            dropped = {"dropped_layers": 4} if size.get("dropped_layers") else {}
            changes = _minilm(task, method, f"roberta-base/mnli/{name}" if dropped else CPU_STARTS[method], **dropped)
            about = f"{method} of roberta-base on {task}"
            found.append(
                Experiment(f"table2/roberta-base/{task}/{name}", about, settings, changes, cell=("RoBERTa-base", *cell))
            )
    return found


def _table2_large() -> list[Experiment]:
    """Adapters of RoBERTa-large in the restricted setting (dagger rows): Table 9."""
    found = []
    for row in glue.HYPERPARAMETERS:
        if not row["row"].startswith("adapter-"):
            continue
        task, method = row["task"], row["row"][: len("adapter-h")]
        settings = replace(
            glue.GLUE, model=row["model"], task=task, method=method, bottleneck=int(row["rank"]),
            batch_size=int(row["batch_size"]), epochs=int(row["epochs"]), learning_rate=float(row["learning_rate"]),
            max_length=int(row["max_length"]), warmup_ratio=float(row["warmup_ratio"]),
            weight_decay=float(row["weight_decay"] or 0),
        )  # fmt: skip
        cell = ("RoBERTa-large", f"Adpt^{method[-1].upper()}†", row["row"].rpartition("-")[2])
        changes = _minilm(task, method, CPU_STARTS[method])
        name = f"table2/{row['model']}/{task}/{row['row']}"
        found.append(Experiment(name, f"{method} of {row['model']} on {task}", settings, changes, cell=cell))
    return found


def _glue_learning_rates() -> list[Experiment]:
    return [
        experiment
        for method, grid in GLUE_GRID.items()
        for task in GLUE_RATES[method]
        for experiment in glue.learning_rates(
            task,
            method,
            replace(glue.GLUE, task=task, method=method, **MINILM[method]),
            grid,
            CPU_STARTS[method],
            **MINILM[method],
        )
    ]


# Rank over time: the six variants of an earlier course project (edwinlin13/cs4782-lora-replication), and the adaptive
# one, each against plain LoRA of the same total rank. By scale: the steps between validations and the fall of the loss
# below which two of them are a plateau, and the steps between reallocations. One epoch at a falling learning rate has
# no flat end, so at `cpu` a plateau is a slower fall.
STAGES = {"method": "sequential-lora", "rank": None, "rank_stages": (2, 4, 6, 8)}
OLD_STAGES = {"frozen": 0.0, "hybrid": 0.1, "unfrozen": 1.0}
PLATEAU = {"stage_trigger": "plateau", "patience": 2, "grace": 1}
GPT2_LORA = replace(e2e.E2E, model="gpt2", rank=8, **e2e.LORA)
GPT2_SMALLER = e2e.smaller(e2e.CPU_LEARNING_RATES["lora"])
GPT2_EVERY = {"paper": (1000, 0.01, 2000), "cpu": (150, 0.02, 400), "quick": (40, 0.01, 40)}
PARTS: dict[str, tuple[Settings, str, dict[str, dict[str, Any]], dict[str, tuple[int, float, int]]]] = {
    # part -> plain LoRA, its name, what its smaller scales replace, the numbers of its schedules
    "gpt2": (GPT2_LORA, "table3/gpt2/lora-r8", GPT2_SMALLER, GPT2_EVERY),
    "gpt2-medium": (replace(GPT2_LORA, model="gpt2-medium"), "table3/gpt2-medium/lora-r8", GPT2_SMALLER, GPT2_EVERY),
    "roberta-base/mrpc": (
        replace(glue.CURVE, task="mrpc", rank=8), "curves/roberta-base/mrpc/lora-r8",
        glue.smaller("mrpc", glue.CPU_LEARNING_RATES["lora"]["mrpc"]),
        {"paper": (100, 0.01, 150), "cpu": (50, 0.01, 75), "quick": (10, 0.01, 5)},
    ),
}  # fmt: skip
ADAPTED = {"gpt2": 24, "gpt2-medium": 48, "gpt2-mini": 8, "roberta-base": 24, "minilm": 12}  # query and value


def _rank_over_time() -> list[Experiment]:
    found = []
    for part, (plain, against, smaller, every) in PARTS.items():
        models = {scale: (smaller[scale]["model"] if scale in smaller else plain.model) for scale in every}
        rows: dict[str, dict[str, dict[str, Any]]] = {
            "adaptive": {
                scale: {"method": "adaptive-lora", "rank": None, "schedule_every": reallocations,
                        "rank_budget": 8 * ADAPTED[models[scale]]}
                for scale, (_, _, reallocations) in every.items()
            }
        }  # fmt: skip
        for old, share in OLD_STAGES.items():
            stages = STAGES | {"old_stages": share}
            rows[f"sequential-fixed-{old}"] = {scale: stages | {"stage_trigger": "fixed"} for scale in every}
            rows[f"sequential-plateau-{old}"] = {
                scale: stages | PLATEAU | {"schedule_every": validations, "min_improvement": fall}
                for scale, (validations, fall, _) in every.items()
            }
        for row, at in rows.items():
            about = f"{row} LoRA up to a mean rank of 8, {part}"
            changes = {scale: smaller[scale] | at[scale] for scale in smaller}
            settings = replace(plain, **at["paper"])
            found.append(Experiment(f"rank-over-time/{part}/{row}", about, settings, changes, against=against))
    return found


VARIANTS = {  # row -> what it changes of LoRA r=8 on query and value
    "rank-stabilised": {"rank_stabilised": True},  # arXiv:2312.03732
    "lora-plus": {"b_learning_rate_ratio": 16.0},  # arXiv:2402.12354, with the ratio that it advises; the rate is A's
    "all-matrices": {"targets": glue.WEIGHT_TYPES["all"]},  # does what LoRA lacks lie in where it is?
}


def _variants() -> list[Experiment]:
    return [
        Experiment(
            f"variants/gpt2/{row}", f"LoRA r=8 of gpt2, {row}",
            replace(GPT2_LORA, **facts, learning_rate=5e-5 if row == "lora-plus" else GPT2_LORA.learning_rate),
            e2e.smaller(E2E_RATES[row], **facts), against=PARTS["gpt2"][1],
        )
        for row, facts in VARIANTS.items()
    ]  # fmt: skip


METHOD_EXPERIMENTS = (
    *_table3(), *_e2e_learning_rates(), *_table2_large(), *_table2(), *_glue_learning_rates(), *_rank_over_time(),
    *_variants(),
)  # fmt: skip
