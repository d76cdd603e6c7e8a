"""The methods that LoRA is compared with, and rank over time: the other rows of Tables 2 and 3, and what goes beyond.

    table3/gpt2-medium/adapter-h, table2/roberta-large/mrpc/adapter-h-0.8M   the baselines, each with its own grid of
    learning-rate/gpt2-mini/adapter-h/0.002                                  learning rates at `cpu`
    rank-over-time/gpt2/sequential-fixed-frozen, .../adaptive                one budget of rank, spent otherwise
    variants/gpt2/rank-stabilised, .../lora-plus, .../all-matrices           changes of one line

Widths and prefix lengths give the printed counts (tests/test_method_counts.py). Rows that the paper takes from prior
work have that work's learning rate: for GPT-2 that of Li & Liang (2021; gpt2/train_e2e.py of XiangLi1999/PrefixTuning
at 048d236). PreLayer has not: their rate is for an MLP that makes the activations, and activations trained directly
need a far higher one. The paper has no rate for PreLayer, BitFit and the variants of LoRA; they have the middle of a
grid. Adapters of RoBERTa-large have Table 9's settings (data/glue_hyperparameters.csv) without weight decay, which the
official scripts do not set for them. The paper does not describe BitFit and Adapter^D of RoBERTa-base: they are trained
as LoRA's row is, at a rate usual for them.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from experiments import e2e, glue, smollm2
from experiments.settings import Experiment, Settings, declare

# The smaller models' learning rates. Where `learning-rate/...` is recorded at `cpu`, a rate is the best of its grid on
# the development set (E2E) or on held-out training rows (GLUE), else its middle (tests/test_experiments.py).
E2E_RATES = {
    "top2": 4e-3, "bitfit": 6.4e-2, "adapter-l": 1.6e-2, "adapter-l-wide": 4e-3, "adapter-h": 4e-3, "prelayer": 1.024,
    "rank-stabilised": 4e-3, "lora-plus": 1e-3, "all-matrices": 4e-3,
}  # fmt: skip
E2E_GRID = {  # row of Table 3 or of the variants -> rates
    "top2": (5e-4, 1e-3, 2e-3, 4e-3, 8e-3),
    "bitfit": (1.6e-2, 3.2e-2, 6.4e-2, 1.28e-1),
    "adapter-l": (8e-3, 1.6e-2, 3.2e-2, 6.4e-2),
    "adapter-l-wide": (2e-3, 4e-3, 8e-3, 1.6e-2),
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

# Table 3: row -> model, method, its size there and in gpt2-mini, learning rate, the paper's cell. Small adapters and
# prefixes have about as many parameters as LoRA r=4; the large adapters have about as many as each other.
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
    experiments = []
    for row, model, method, size, mini, rate, cell in E2E_ROWS:
        settings = replace(e2e.E2E, model=model, method=method, learning_rate=rate, **size)
        small_row = "adapter-l-wide" if row.startswith("adapter-l-") else row
        by_scale = e2e.at_scales(settings, E2E_RATES[small_row], **mini)
        cell = (NAMES[model], *cell) if cell else None
        experiments += declare("table3", row, f"{method} of {{model}} on {{task}}", by_scale, small_row, cell=cell)
    return experiments


def _e2e_learning_rates() -> list[Experiment]:
    candidates = []
    for row, model, method, size, mini, *_ in E2E_ROWS:
        if model == "gpt2-medium":
            base = replace(e2e.E2E, model=model, method=method, **size)
            small_row = "adapter-l-wide" if row.startswith("adapter-l-") else row
            candidates += e2e.learning_rates(small_row, base, E2E_GRID[small_row], **mini)
            candidates += e2e.paper_learning_rates(row, base, PAPER_GRID[row])
    for row, changes in VARIANTS.items():
        candidates += e2e.learning_rates(row, replace(GPT2_LORA, **changes), E2E_GRID[row])
        candidates += e2e.paper_learning_rates(row, replace(GPT2_LORA, **changes), PAPER_GRID[row])
    return candidates


# Table 2: row of RoBERTa-base -> method, size there and in MiniLM, learning rate, the paper's cell.
MINILM = {"bitfit": {}, "adapter-h": {"bottleneck": 8}, "adapter-p": {"bottleneck": 16, "dropped_layers": 0}}
BASE_ROWS: dict[str, tuple[str, dict[str, int], float, tuple[str, str]]] = {
    "bitfit": ("bitfit", {}, 1e-3, ("BitFit", "0.1M")),
    "adapter-d-0.3M": ("adapter-p", {"bottleneck": 48, "dropped_layers": 8}, 3e-4, ("Adpt^D", "0.3M")),
    "adapter-d-0.9M": ("adapter-p", {"bottleneck": 48}, 3e-4, ("Adpt^D", "0.9M")),
}


def _at_scales(paper: Settings, start: str, **changes: Any) -> dict[str, Settings]:
    """`glue.at_scales` with MiniLM's sizes and rates; at `cpu` RTE's rows start from MNLI, as LoRA's do."""
    rate = glue.cpu_rate(GLUE_RATES[paper.method], paper.task)
    return glue.at_scales(paper, rate, start, **MINILM[paper.method] | changes)


def _table2() -> list[Experiment]:
    experiments = []
    for line in glue.HYPERPARAMETERS:
        if (line["model"], line["variant"]) != ("roberta-base", "paper"):
            continue
        for row, (method, size, rate, cell) in BASE_ROWS.items():
            settings = replace(
                glue.GLUE, task=line["task"], method=method, **size, learning_rate=rate,
                batch_size=int(line["batch_size"]), epochs=int(line["epochs"]), max_length=int(line["max_length"]),
            )  # fmt: skip
            dropped = {"dropped_layers": 4} if size.get("dropped_layers") else {}
            small_row = "adapter-d" if dropped else method
            by_scale = _at_scales(settings, small_row, **dropped)
            about, cell = f"{method} of {{model}} on {{task}}", ("RoBERTa-base", *cell)
            experiments += declare("table2", row, about, by_scale, small_row, cell=cell)
    return experiments


def _table2_large() -> list[Experiment]:
    """Adapters of RoBERTa-large in the restricted setting (dagger rows): Table 9."""
    experiments = []
    for line in (line for line in glue.HYPERPARAMETERS if line["row"].startswith("adapter-")):
        method = line["row"][: len("adapter-h")]
        settings = replace(
            glue.GLUE, model=line["model"], task=line["task"], method=method, bottleneck=int(line["rank"]),
            batch_size=int(line["batch_size"]), epochs=int(line["epochs"]), learning_rate=float(line["learning_rate"]),
            max_length=int(line["max_length"]), warmup_ratio=float(line["warmup_ratio"]),
            weight_decay=float(line["weight_decay"] or 0),
        )  # fmt: skip
        cell = ("RoBERTa-large", f"Adpt^{method[-1].upper()}†", line["row"].rpartition("-")[2])
        about, by_scale = f"{method} of {{model}} on {{task}}", _at_scales(settings, method)
        experiments += declare("table2", line["row"], about, by_scale, method, cell=cell)
    return experiments


def _glue_learning_rates() -> list[Experiment]:
    candidates = []
    for method, grid in GLUE_GRID.items():
        for task in GLUE_RATES[method]:
            base = replace(glue.GLUE, task=task, method=method, **MINILM[method])
            candidates += glue.learning_rates(method, base, grid, method, **MINILM[method])
    return candidates


# Rank over time: the six variants of an earlier course project (edwinlin13/cs4782-lora-replication), and the adaptive
# one, each against plain LoRA of the same total rank. By scale: steps between validations, the fall of the loss that
# ends a plateau, steps between reallocations. One epoch at a falling learning rate has no flat end, so at `cpu` a
# plateau is a slower fall.
STAGES = {"method": "sequential-lora", "rank": None, "rank_stages": (2, 4, 6, 8)}
OLD_STAGES = {"frozen": 0.0, "hybrid": 0.1, "unfrozen": 1.0}
PLATEAU = {"stage_trigger": "plateau", "patience": 2, "grace": 1}
GPT2_LORA = replace(e2e.E2E, model="gpt2", rank=8, **e2e.LORA)
GPT2_EVERY = {"paper": (1000, 0.01, 2000), "cpu": (150, 0.02, 400), "quick": (40, 0.01, 40)}
MRPC = replace(glue.CURVE, task="mrpc", rank=8)
SMOLLM2_EVERY = {"cpu": (150, 0.02, 100)}
PARTS: list[tuple[dict[str, Settings], tuple[str, str], dict[str, tuple[int, float, int]]]] = [
    # plain LoRA at every scale, its table and row, the numbers of the schedules
    (e2e.at_scales(GPT2_LORA, e2e.CPU_LEARNING_RATES["lora"]), ("table3", "lora-r8"), GPT2_EVERY),
    ({"paper": replace(GPT2_LORA, model="gpt2-medium")}, ("table3", "lora-r8"), GPT2_EVERY),
    (glue.at_scales(MRPC, glue.CPU_LEARNING_RATES["lora"]["mrpc"]), ("curves", "lora-r8"),
     {"paper": (100, 0.01, 150), "cpu": (50, 0.01, 75), "quick": (10, 0.01, 5)}),
    ({"cpu": next(e.settings for e in smollm2.SMOLLM2_EXPERIMENTS if e.name == "table3/smollm2-135m/lora-r8")},
     ("table3", "lora-r8"), SMOLLM2_EVERY),
]  # fmt: skip
ADAPTED = {
    "gpt2": 24,
    "gpt2-medium": 48,
    "gpt2-mini": 8,
    "roberta-base": 24,
    "minilm": 12,
    "smollm2-135m": 60,
}  # query and value


def _rank_over_time() -> list[Experiment]:
    experiments = []
    for plain, against, every in PARTS:
        rows: dict[str, dict[str, dict[str, Any]]] = {
            "adaptive": {
                scale: {"method": "adaptive-lora", "rank": None, "schedule_every": every[scale][2],
                        "rank_budget": 8 * ADAPTED[settings.model]}
                for scale, settings in plain.items()
            }
        }  # fmt: skip
        for old, share in OLD_STAGES.items():
            stages = STAGES | {"old_stages": share}
            rows[f"sequential-fixed-{old}"] = {scale: stages | {"stage_trigger": "fixed"} for scale in plain}
            rows[f"sequential-plateau-{old}"] = {
                scale: stages | PLATEAU | {"schedule_every": every[scale][0], "min_improvement": every[scale][1]}
                for scale in plain
            }
        for row, changes in rows.items():
            by_scale = {scale: replace(settings, **changes[scale]) for scale, settings in plain.items()}
            about = f"{row} LoRA of {{model}} on {{task}}, up to a mean rank of 8"
            experiments += declare("rank-over-time", row, about, by_scale, against=against)
    return experiments


VARIANTS = {  # row -> what it changes of LoRA r=8 on query and value
    "rank-stabilised": {"rank_stabilised": True},  # arXiv:2312.03732
    "lora-plus": {"b_learning_rate_ratio": 16.0},  # arXiv:2402.12354 advises this ratio; the rate is A's
    "all-matrices": {"targets": glue.WEIGHT_TYPES["all"]},  # does LoRA need more matrices, not more rank?
}


def _variants() -> list[Experiment]:
    experiments = []
    for row, changes in VARIANTS.items():
        rate = {"learning_rate": 5e-5} if row == "lora-plus" else {}
        by_scale = e2e.at_scales(replace(GPT2_LORA, **changes, **rate), E2E_RATES[row])
        about = f"LoRA r=8 of {{model}}, {row}"
        experiments += declare("variants", row, about, by_scale, against=("table3", "lora-r8"))
    return experiments


METHOD_EXPERIMENTS = (
    *_table3(), *_e2e_learning_rates(), *_table2_large(), *_table2(), *_glue_learning_rates(), *_rank_over_time(),
    *_variants(),
)  # fmt: skip
