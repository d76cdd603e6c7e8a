"""RoBERTa and DeBERTa on GLUE: Table 2, ranks and weight types (Tables 5 and 6), curves over epochs.

LoRA's settings per task are Tables 9 and 10 of arXiv 2106.09685v2 and the scripts of examples/NLU of
microsoft/LoRA at c4593f0, row by row in `data/glue_hyperparameters.csv`; what both leave to the
defaults (AdamW's betas and epsilon, clipping at 1, what decays) is that of transformers 4.4.2, as the
official code used it. The weight decay of RoBERTa, 0.1, is only in the code.

The paper took its full fine-tuning rows from prior work. Here they are run: RoBERTa within the grid of Liu et al.
(2019, section 5.1), its middle for base and its lowest rate for large, DeBERTa as He et al. (2020) on the same tasks.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from data_tables import read_table
from settings import OFFICIAL, Experiment, Settings

QUERY_VALUE = ("query", "value")
LORA = {"method": "lora", "lora_dropout": 0.0, "targets": QUERY_VALUE}  # the official code passes no dropout
GLUE = Settings(
    task="mrpc", model="roberta-base", method="full", learning_rate=2e-5, epochs=10, batch_size=16, warmup_ratio=0.06,
    weight_decay=0.1, label_smoothing=0.0, adam_epsilon=1e-8, max_grad_norm=1.0, decay="matrices", max_length=512,
)  # fmt: skip
GLUE_TASKS = ("mnli", "sst2", "mrpc", "cola", "qnli", "qqp", "rte", "stsb")
MODELS = {  # model -> its name in Table 2, the trainable parameters printed there for full fine-tuning and LoRA
    "roberta-base": ("RoBERTa-base", "125.0M", "0.3M"),
    "roberta-large": ("RoBERTa-large", "355.0M", "0.8M"),
    "deberta-v2-xxlarge": ("DeBERTa-XXL", "1500.0M", "4.7M"),
}
DEBERTA = {"precision": "bfloat16", "gradient_checkpointing": True, "weight_decay": 0.01, "warmup_ratio": 0.1}
FULL = {  # what full fine-tuning changes of GLUE
    "roberta-base": {},
    "roberta-large": {"learning_rate": 1e-5},
    "deberta-v2-xxlarge": DEBERTA | {"learning_rate": 3e-6, "epochs": 5, "batch_size": 32, "max_length": 256},
}

# The smaller scales: MiniLM stands for every encoder. Where `learning-rate/glue-*` is recorded, the rate is its best on
# held-out training rows, else the middle of its grid. Three tasks have the rows of a subset of 9,000, which is what
# was at hand, and would take hours whole. RTE alone starts from MNLI, with every method that is searched there: by
# itself full fine-tuning stayed near chance (one seed), and came to know its rows by heart.
CPU_EPOCHS = {"mnli": 2, "sst2": 1, "mrpc": 4, "cola": 6, "qnli": 2, "qqp": 2, "rte": 4, "stsb": 3}
CPU_ROWS = dict.fromkeys(("mnli", "qnli", "qqp"), 8_100)  # without the tenth that is held out
CPU = {
    "model": "minilm", "batch_size": 16, "max_length": 128, "precision": "auto", "gradient_checkpointing": False,
    "warmup_steps": 0, "warmup_ratio": 0.06, "weight_decay": 0.1, "head_dropout": None, "start_from": None,
}  # fmt: skip
QUICK = CPU | {"epochs": 2, "batch_size": 8, "train_rows": 480, "max_length": 64}
CPU_LEARNING_RATES = {  # method -> task -> rate; MRPC's is that of the tasks that are not here, too
    "full": {"mrpc": 5e-5, "rte": 1e-4, "cola": 5e-5, "stsb": 1e-4, "sst2": 1e-4},
    "lora": {"mrpc": 2e-3, "rte": 5e-4, "cola": 1e-3, "stsb": 2e-3, "sst2": 2e-3},
}
SEARCH: dict[str, dict[str, Any]] = {  # task -> what a candidate learning rate gets at `cpu`
    "mrpc": {"epochs": 2}, "rte": {"epochs": 2}, "stsb": {"epochs": 2},
    "cola": {"epochs": 4},  # after two, a rate looks good that ends at the majority class
    "sst2": {"epochs": 1, "train_rows": 8_000},
}  # fmt: skip
LEARNING_RATE_GRID = {"full": (2.5e-5, 5e-5, 1e-4, 2e-4), "lora": (5e-4, 1e-3, 2e-3, 4e-3)}
# task and method -> rates beyond an end of the grid that was its best
FURTHER_RATES: dict[tuple[str, str], tuple[float, ...]] = {("rte", "lora"): (2.5e-4,), ("rte", "bitfit"): (5e-4,)}
FROM_MNLI = ("mrpc", "rte", "stsb")  # LoRA starts there, but in the restricted rows
CPU_FROM_MNLI = ("rte",)  # of these at `cpu`
CPU_STARTS = {"full": "roberta-base/mnli/full", "lora": "roberta-base/mnli/lora-r8"}
SINGLE_SENTENCE = ("sst2", "cola")  # stand as the built-in sentiment task at `quick`, the others as the paraphrases


def smaller(task: str, learning_rate: float, **changes: Any) -> dict[str, dict[str, Any]]:
    """What an experiment on a GLUE task replaces at the smaller scales."""
    builtin = "sentiment-builtin" if task in SINGLE_SENTENCE else "paraphrase-builtin"
    changes = {"learning_rate": learning_rate, **changes}
    cpu = {"epochs": CPU_EPOCHS[task], "train_rows": CPU_ROWS.get(task)}
    return {"cpu": CPU | cpu | changes, "quick": QUICK | {"task": builtin} | changes}


def _smaller_row(task: str, method: str, start: str | None = None, **changes: Any) -> dict[str, dict[str, Any]]:
    alpha = {"alpha": 16.0} if method == "lora" else {}
    at = smaller(task, cpu_rate(CPU_LEARNING_RATES[method], task), **alpha, **changes)
    return at | {"cpu": at["cpu"] | cpu_start(task, start)}


def cpu_start(task: str, row: str | None) -> dict[str, str]:
    """Table 2's row of MNLI that a row of the task starts from at `cpu`, where it does."""
    return {"start_from": f"table2/{row}"} if row and task in CPU_FROM_MNLI else {}


def cpu_rate(rates: dict[str, float], task: str) -> float:
    """A method's rate on the task: its own, or MRPC's where none was searched."""
    return rates.get(task, rates["mrpc"])


HYPERPARAMETERS = read_table("glue_hyperparameters.csv")  # LoRA as published and as coded, adapters as published


def _lora_rows() -> list[Experiment]:
    rows = [row for row in HYPERPARAMETERS if row["row"].startswith("lora")]
    found = []
    for row in rows:
        model, task, official = row["model"], row["task"], row["variant"] == OFFICIAL
        start = {"start_from": f"table2/{model}/mnli/lora-r{row['rank']}"} if row["mnli_start"] == "yes" else {}
        settings = replace(
            GLUE, model=model, task=task, **LORA, **start, rank=int(row["rank"]), alpha=float(row["alpha"]),
            batch_size=int(row["batch_size"]), epochs=int(row["epochs"]), learning_rate=float(row["learning_rate"]),
            weight_decay=float(row["weight_decay"] or GLUE.weight_decay), max_length=int(row["max_length"]),
            warmup_ratio=float(row["warmup_ratio"] or 0), warmup_steps=int(row["warmup_steps"] or 0),
            head_dropout=float(row["head_dropout"]) if row["head_dropout"] else None,
            gradient_checkpointing=official and int(row["batch_size"]) >= 128,  # else 256 rows take over 40 GB
        )  # fmt: skip
        if model == "deberta-v2-xxlarge":
            settings = replace(settings, precision="bfloat16", gradient_checkpointing=True)
        if official and start:
            settings = replace(settings, start_from=f"{settings.start_from}/{OFFICIAL}")
        restricted = row["row"] == "lora-restricted"
        name = f"table2/{model}/{task}/lora-r{row['rank']}{'-restricted' if restricted else ''}"
        label, _, trainable = MODELS[model]
        cell = (label, "LoRA†" if restricted else "LoRA", trainable)
        variant = row["variant"]
        about = f"LoRA r={row['rank']} of {model} on {task}" + (", as the official code runs it" if official else "")
        name += f"/{OFFICIAL}" if official else ""
        changes = _smaller_row(task, "lora", CPU_STARTS["lora"] if start else None, rank=8)
        found.append(Experiment(name, about, settings, changes, cell=cell, variant=variant))
    return found


def _full_rows() -> list[Experiment]:
    """From the pre-trained model, and from MNLI where LoRA starts there, as section 5.2 says of full fine-tuning."""
    found = []
    for model, (label, trainable, _) in MODELS.items():
        for task in GLUE_TASKS:
            name, about = f"table2/{model}/{task}/full", f"full fine-tuning of {model} on {task}"
            settings = replace(GLUE, model=model, task=task, **FULL[model])
            found.append(Experiment(name, about, settings, _smaller_row(task, "full"), cell=(label, "FT", trainable)))
            if task in FROM_MNLI:
                settings = replace(settings, start_from=f"table2/{model}/mnli/full")
                scales = ("cpu", "paper") if task in CPU_FROM_MNLI else ("paper",)
                changes = _smaller_row(task, "full", CPU_STARTS["full"])
                found.append(Experiment(f"{name}-from-mnli", f"{about}, from MNLI", settings, changes, scales=scales))
    return found


def _released() -> list[Experiment]:
    """The authors' own adapters with their heads, scored as the official code would: its alpha and rank, its length."""
    return [
        Experiment(
            f"released/{row.paper.model}/{row.paper.task}",
            f"the authors' own adapter of {row.paper.model} on {row.paper.task} scored, without training",
            replace(row.paper, method="released", start_from=None),
            scales=("paper",),
            cell=row.cell,
        )
        for row in _lora_rows()
        if row.variant == OFFICIAL
    ]


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
    return [
        Experiment(
            f"{table}/roberta-base/{task}/{row}",
            f"LoRA r={rank} on {', '.join(targets)} of roberta-base on {task}",
            replace(GRID, task=task, rank=rank, targets=targets),
            _smaller_row(task, "lora") | {"cpu": _smaller_row(task, "lora")["cpu"] | GRID_CPU},
        )
        for table, rows in (("table6", table6), ("table5", table5))
        for task in ("mnli", "sst2")
        for row, (targets, rank) in rows.items()
    ]


def _curves() -> list[Experiment]:
    """Accuracy after every epoch by rank: RoBERTa-base on MRPC and RTE, DeBERTa-v2-xlarge on SST-2."""
    found = []
    for task in ("mrpc", "rte"):
        full = replace(GLUE, task=task, max_length=128)
        found.append(
            Experiment(
                f"curves/roberta-base/{task}/full", f"full fine-tuning, {task}", full, _smaller_row(task, "full")
            )
        )
        for rank in (4, 8, 16):
            lora = replace(CURVE, task=task, rank=rank)
            found.append(
                Experiment(
                    f"curves/roberta-base/{task}/lora-r{rank}",
                    f"LoRA r={rank}, {task}",
                    lora,
                    _smaller_row(task, "lora"),
                )
            )
    xlarge = replace(GLUE, task="sst2", model="deberta-v2-xlarge", **DEBERTA, epochs=4, batch_size=32, max_length=128)
    for row, changes in (
        ("full", {"learning_rate": 3e-6}),
        ("lora-r8", {**LORA, "rank": 8, "alpha": 16.0, "learning_rate": 1e-4}),
    ):
        settings = replace(xlarge, **changes)
        name = f"curves/deberta-v2-xlarge/sst2/{row}"
        found.append(
            Experiment(name, f"{row} of deberta-v2-xlarge on sst2", settings, _smaller_row("sst2", settings.method))
        )
    return found


def learning_rates(
    task: str, method: str, base: Settings, grid: tuple[float, ...], start: str | None = None, **changes: Any
) -> list[Experiment]:
    """A method's candidates at the smaller scales, compared on the tenth of the training rows that is held out."""
    found = []
    for rate in sorted((*grid, *FURTHER_RATES.get((task, method), ()))):
        at = smaller(task, rate, **changes, evaluate="selection")
        name = f"learning-rate/glue-{task}/{method}/{rate:g}"
        about = f"{method} at {rate:g} on {task}, scored on held-out training rows"
        settings = replace(base, learning_rate=rate, evaluate="selection")
        cpu = at["cpu"] | SEARCH[task] | cpu_start(task, start)
        found.append(Experiment(name, about, settings, at | {"cpu": cpu}, scales=("quick", "cpu")))
    return found


def _learning_rates() -> list[Experiment]:
    full, lora = LEARNING_RATE_GRID["full"], LEARNING_RATE_GRID["lora"]
    found = []
    for task in SEARCH:
        base = replace(GLUE, task=task)
        found += learning_rates(task, "full", base, full, CPU_STARTS["full"])
        base = replace(base, **LORA, rank=8, alpha=16.0)
        found += learning_rates(task, "lora", base, lora, CPU_STARTS["lora"], alpha=16.0)
    return found


GLUE_EXPERIMENTS = (*_full_rows(), *_lora_rows(), *_released(), *_grid(), *_curves(), *_learning_rates())
