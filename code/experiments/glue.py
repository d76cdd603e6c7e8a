"""RoBERTa and DeBERTa on GLUE: Table 2, ranks and weight types (Tables 5 and 6), curves over epochs.

LoRA's settings per task are those of Tables 9 and 10 of arXiv 2106.09685v2 and of the scripts of examples/NLU of
microsoft/LoRA at c4593f0; `data/glue_hyperparameters.csv` has them row by row. What both leave to defaults (AdamW's
betas and epsilon, clipping at 1, what decays) is as in transformers 4.4.2, which the official code used. The weight
decay of RoBERTa, 0.1, is only in the code.

The paper took its full fine-tuning rows from prior work. Here they are run. RoBERTa's rates are of the grid of Liu et
al. (2019, section 5.1): the middle for base, the lowest for large. DeBERTa is as in He et al. (2020) on the same tasks.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import product
from typing import Any

from experiments.settings import OFFICIAL, Experiment, Settings, declare
from files import read_table

QUERY_VALUE = ("query", "value")
LORA = {"method": "lora", "lora_dropout": 0.0, "targets": QUERY_VALUE}  # the official code passes no dropout
GLUE = Settings(
    task="mrpc", model="roberta-base", method="full", learning_rate=2e-5, epochs=10, batch_size=16, warmup_ratio=0.06,
    weight_decay=0.1, label_smoothing=0.0, adam_epsilon=1e-8, max_grad_norm=1.0, decay="matrices", max_length=512,
    precision="tf32", gradient_checkpointing=None,
)  # fmt: skip
GLUE_TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
PAPER_MODELS = {  # model -> its name in Table 2, the trainable parameters printed there for full fine-tuning and LoRA
    "roberta-base": ("RoBERTa-base", "125.0M", "0.3M"),
    "roberta-large": ("RoBERTa-large", "355.0M", "0.8M"),
    "deberta-v2-xxlarge": ("DeBERTa-XXL", "1500.0M", "4.7M"),
}
DEBERTA = {"precision": "bfloat16", "weight_decay": 0.01, "warmup_ratio": 0.1}
FULL = {  # what full fine-tuning changes of GLUE
    "roberta-base": {},
    "roberta-large": {"learning_rate": 1e-5},
    "deberta-v2-xxlarge": DEBERTA | {"learning_rate": 3e-6, "epochs": 5, "batch_size": 32, "max_length": 256},
}

# The smaller scales: MiniLM stands for every encoder. A rate is the best on held-out training rows where
# `learning-rate/minilm/*` is recorded, else the middle of its grid. Three tasks have a subset of 9,000 rows: no more
# was at hand, and whole they would take hours. RTE alone starts from MNLI, with every method that is searched there:
# without that start, full fine-tuning learnt its rows by heart and stayed near chance (one seed).
CPU_EPOCHS = {"mnli": 2, "sst2": 1, "mrpc": 4, "cola": 6, "qnli": 2, "qqp": 2, "rte": 4, "stsb": 3}
CPU_ROWS = dict.fromkeys(("mnli", "qnli", "qqp"), 8_100)  # without the tenth that is held out
CPU = {
    "model": "minilm", "batch_size": 16, "max_length": 128, "precision": "auto", "gradient_checkpointing": False,
    "warmup_steps": 0, "warmup_ratio": 0.06, "weight_decay": 0.1, "head_dropout": None, "start_from": None,
    "frozen_positions": False,
}  # fmt: skip
QUICK = CPU | {"epochs": 2, "batch_size": 8, "train_rows": 480, "max_length": 64}
CPU_LEARNING_RATES = {  # method -> task -> rate; a task that is not here has MRPC's
    "full": {"mrpc": 5e-5, "rte": 1e-4, "cola": 5e-5, "stsb": 1e-4, "sst2": 1e-4},
    "lora": {"mrpc": 2e-3, "rte": 5e-4, "cola": 1e-3, "stsb": 2e-3, "sst2": 2e-3},
}
SEARCH: dict[str, dict[str, Any]] = {  # task -> what a candidate learning rate gets at `cpu`
    "mrpc": {"epochs": 2}, "rte": {"epochs": 2}, "stsb": {"epochs": 2},
    "cola": {"epochs": 4},  # after two, a rate that ends at the majority class looks good
    "sst2": {"epochs": 1, "train_rows": 8_000},
}  # fmt: skip
LEARNING_RATE_GRID = {"full": (2.5e-5, 5e-5, 1e-4, 2e-4), "lora": (5e-4, 1e-3, 2e-3, 4e-3)}
# task and method -> rates beyond the grid, where its best was at an end
FURTHER_RATES: dict[tuple[str, str], tuple[float, ...]] = {("rte", "lora"): (2.5e-4,), ("rte", "bitfit"): (5e-4,)}
FROM_MNLI = ("mrpc", "rte", "stsb")  # LoRA starts from MNLI, except in the restricted rows
CPU_FROM_MNLI = ("rte",)  # the same at `cpu`
QUICK_TASKS = {"mrpc": "paraphrase-builtin", "sst2": "sentiment-builtin"}  # what stands for them at `quick`


def at_scales(paper: Settings, learning_rate: float, start: str | None = None, **changes: Any) -> dict[str, Settings]:
    """An experiment on a GLUE task at every scale; the smaller scales have `learning_rate` and `changes`.

    At `cpu` the tasks of CPU_FROM_MNLI start from MiniLM's MNLI row `start`. Only two tasks exist at `quick`.
    """
    task, small = paper.task, {"learning_rate": learning_rate, **changes}
    cpu = CPU | {"epochs": CPU_EPOCHS[task], "train_rows": CPU_ROWS.get(task)} | small
    if start and task in CPU_FROM_MNLI:
        cpu |= {"start_from": f"table2/minilm/mnli/{start}"}
    by_scale = {"paper": paper, "cpu": replace(paper, **cpu)}
    if task in QUICK_TASKS:
        by_scale["quick"] = replace(paper, **QUICK | {"task": QUICK_TASKS[task]} | small)
    return by_scale


def cpu_rate(rates: dict[str, float], task: str) -> float:
    """A method's rate on the task: its own, or MRPC's where none was searched."""
    return rates.get(task, rates["mrpc"])


def _row_at_scales(paper: Settings, start: str | None = None, **changes: Any) -> dict[str, Settings]:
    """`at_scales` for full fine-tuning or LoRA, at its own rates."""
    alpha = {"alpha": 16.0} if paper.method == "lora" else {}
    return at_scales(paper, cpu_rate(CPU_LEARNING_RATES[paper.method], paper.task), start, **alpha, **changes)


HYPERPARAMETERS = read_table("glue_hyperparameters.csv")  # LoRA as published and as coded, adapters as published


def _lora_rows() -> list[Experiment]:
    experiments = []
    for line in (line for line in HYPERPARAMETERS if line["row"].startswith("lora")):
        model, task, rank, official = line["model"], line["task"], line["rank"], line["variant"] == OFFICIAL
        from_mnli, restricted = line["mnli_start"] == "yes", line["row"] == "lora-restricted"
        suffix = f"/{OFFICIAL}" if official else ""
        start = {"start_from": f"table2/{model}/mnli/lora-r{rank}{suffix}"} if from_mnli else {}
        settings = replace(
            GLUE, model=model, task=task, **LORA, **start, rank=int(rank), alpha=float(line["alpha"]),
            batch_size=int(line["batch_size"]), epochs=int(line["epochs"]), learning_rate=float(line["learning_rate"]),
            weight_decay=float(line["weight_decay"] or GLUE.weight_decay), max_length=int(line["max_length"]),
            warmup_ratio=float(line["warmup_ratio"] or 0), warmup_steps=int(line["warmup_steps"] or 0),
            head_dropout=float(line["head_dropout"]) if line["head_dropout"] else None,
            precision="bfloat16" if model == "deberta-v2-xxlarge" else "float32" if official else "tf32",
            hold_out=not official, frozen_positions=official and model == "deberta-v2-xxlarge",
        )  # fmt: skip
        label, _, trainable = PAPER_MODELS[model]
        experiments += declare(
            "table2", f"lora-r{rank}{'-restricted' if restricted else ''}",
            "LoRA of {model} on {task}" + (", as the official code runs it" if official else ""),
            _row_at_scales(settings, "lora-r8" if from_mnli else None, rank=8),
            small_row=f"lora-r8{'-restricted' if restricted and task in CPU_FROM_MNLI else ''}",
            cell=(label, "LoRA†" if restricted else "LoRA", trainable), variant=line["variant"],
        )  # fmt: skip
    return experiments


def _full_rows() -> list[Experiment]:
    """Full fine-tuning from the pre-trained model, and also from MNLI where LoRA starts there (section 5.2)."""
    experiments = []
    for model, (label, trainable, _) in PAPER_MODELS.items():
        for task in GLUE_TASKS:
            settings = replace(GLUE, model=model, task=task, **FULL[model])
            about, cell = "full fine-tuning of {model} on {task}", (label, "FT", trainable)
            experiments += declare("table2", "full", about, _row_at_scales(settings), cell=cell)
            if task in FROM_MNLI:
                settings = replace(settings, start_from=f"table2/{model}/mnli/full")
                by_scale = _row_at_scales(settings, "full")
                scales = ("cpu", "paper") if task in CPU_FROM_MNLI else ("paper",)
                chosen = {scale: by_scale[scale] for scale in scales}
                experiments += declare("table2", "full-from-mnli", f"{about}, from MNLI", chosen)
    return experiments


def _released() -> list[Experiment]:
    """The authors' own adapters with their heads, scored with the official code's alpha, rank and length."""
    return [
        Experiment(
            f"released/{row.settings.model}/{row.settings.task}",
            f"the authors' own adapter of {row.settings.model} on {row.settings.task} scored, without training",
            replace(row.settings, method="released", start_from=None), "paper", cell=row.cell,
        )
        for row in _lora_rows()
        if row.variant == OFFICIAL and row.scale == "paper"
    ]  # fmt: skip


# Tables 5 and 6 ask on GPT-3 which matrices and which rank; the poster of an earlier study adds the MLP.
WEIGHT_TYPES = {
    "query": ("query",),
    "value": ("value",),
    "query-value": QUERY_VALUE,
    "query-key-value-output": ("query", "key", "value", "output"),
    "mlp": ("mlp_in", "mlp_out"),
    "all": ("query", "key", "value", "output", "mlp_in", "mlp_out"),
}
RANKS = (1, 2, 4, 8, 64)
FIXED_BUDGET = {  # Table 5: the same number of parameters, spread over more matrices of lower rank
    "query": 8, "key": 8, "value": 8, "output": 8, "query-key": 4, "query-value": 4, "query-key-value-output": 2,
}  # fmt: skip
CURVE = replace(GLUE, **LORA, alpha=16.0, learning_rate=4e-4, max_length=128)
GRID = replace(GLUE, **LORA, alpha=16.0, learning_rate=5e-4, epochs=3, max_length=128)
GRID_CPU = {"epochs": 1, "train_rows": 10_000}


def _grid() -> list[Experiment]:
    """Rank x weight types on MNLI and SST-2, and Table 5's fixed budget; one recipe for every cell."""
    table6 = {f"{types}-r{rank}": (targets, rank) for types, targets in WEIGHT_TYPES.items() for rank in RANKS}
    table5 = {f"{types}-r{rank}": (tuple(types.split("-")), rank) for types, rank in FIXED_BUDGET.items()}
    experiments = []
    for table, rows in (("table6", table6), ("table5", table5)):
        for task, (row, (targets, rank)) in product(("mnli", "sst2"), rows.items()):
            by_scale = _row_at_scales(replace(GRID, task=task, rank=rank, targets=targets))
            by_scale["cpu"] = replace(by_scale["cpu"], **GRID_CPU)
            about = f"LoRA r={rank} on {', '.join(targets)} of {{model}} on {{task}}"
            experiments += declare(table, row, about, by_scale)
    return experiments


def _curves() -> list[Experiment]:
    """Accuracy after every epoch by rank: RoBERTa-base on MRPC and RTE, DeBERTa-v2-xlarge on SST-2."""
    rows = [("full", replace(GLUE, task=task, max_length=128)) for task in ("mrpc", "rte")]
    rows += [(f"lora-r{r}", replace(CURVE, task=task, rank=r)) for task in ("mrpc", "rte") for r in (4, 8, 16)]
    xlarge = replace(GLUE, task="sst2", model="deberta-v2-xlarge", **DEBERTA, epochs=4, batch_size=32, max_length=128)
    rows.append(("full", replace(xlarge, learning_rate=3e-6)))
    rows.append(("lora-r8", replace(xlarge, **LORA, rank=8, alpha=16.0, learning_rate=1e-4)))
    return [
        experiment
        for row, settings in rows
        for experiment in declare("curves", row, f"{row} of {{model}} on {{task}}", _row_at_scales(settings))
    ]


def learning_rates(
    row: str, base: Settings, grid: tuple[float, ...], start: str | None = None, **changes: Any
) -> list[Experiment]:
    """A row's candidate rates at the smaller scales, compared on the held-out tenth of the training rows."""
    candidates = []
    for rate in sorted((*grid, *FURTHER_RATES.get((base.task, row), ()))):
        by_scale = at_scales(base, rate, start, **changes, evaluate="selection")
        del by_scale["paper"]
        by_scale["cpu"] = replace(by_scale["cpu"], **SEARCH[base.task])
        about = f"{row} at {rate:g}, {{model}} on {{task}}, scored on held-out training rows"
        candidates += declare("learning-rate", f"{row}/{rate:g}", about, by_scale)
    return candidates


def _learning_rates() -> list[Experiment]:
    candidates = []
    for task in SEARCH:
        full, lora = replace(GLUE, task=task), replace(GLUE, task=task, **LORA, rank=8, alpha=16.0)
        candidates += learning_rates("full", full, LEARNING_RATE_GRID["full"], "full")
        candidates += learning_rates("lora", lora, LEARNING_RATE_GRID["lora"], "lora-r8")
    return candidates


GLUE_EXPERIMENTS = (*_full_rows(), *_lora_rows(), *_released(), *_grid(), *_curves(), *_learning_rates())
