"""The declarations: names, scales, variants, counts, and the paper's numbers."""

import json
import math
import re
from dataclasses import fields, replace

import numpy as np
import pandas as pd
import pytest

import files
from analysis.summary import read_summary
from costs.parameter_counts import trained_parameters
from experiments import e2e as e2e_experiments
from experiments import glue as glue_experiments
from experiments import low_data, other_methods, smollm2
from experiments.catalogue import EXPERIMENTS, by_name, find, select
from experiments.glue import FURTHER_RATES
from experiments.settings import CHOICES, SCALES, Experiment, Job, Settings
from files import read_table
from methods.catalogue import METHODS, apply_method
from models import BASES, architecture
from runs import records
from tasks.catalogue import TASKS


def test_the_fixed_names_are_there():
    for name in ("table3/gpt2-medium/lora-r4", "table3/gpt2/lora-r4", "table3/gpt2/full", "released/gpt2-medium/e2e"):
        assert find(name).name == name


def test_every_experiment_has_a_known_task_model_method_and_scale():
    for experiment in EXPERIMENTS.values():
        settings = experiment.settings
        assert settings.task in TASKS and settings.model in BASES and settings.method in METHODS
        assert experiment.scale in SCALES


def test_every_name_has_the_base_that_is_trained_and_the_task_unless_it_is_e2e():
    for name, experiment in EXPERIMENTS.items():
        base, *others = name.split("/")[1:]
        assert base == experiment.settings.model
        if experiment.table == "released":  # one adapter a base and task, so that the task is the row
            assert others == [experiment.settings.task]
        elif experiment.settings.task == "e2e":
            assert not TASKS.keys() & {*others}
        else:
            assert others[0] == experiment.settings.task


def test_a_base_on_published_data_belongs_to_one_scale_and_built_in_data_to_quick():
    for experiment in EXPERIMENTS.values():
        builtin = experiment.settings.task.endswith("-builtin")
        assert experiment.scale == ("quick" if builtin else BASES[experiment.settings.model].scale), experiment.name


def test_what_a_run_starts_from_and_is_measured_against_is_of_its_scale():
    scales = {(e.name, other): (e.scale, find(other).scale)
              for e in EXPERIMENTS.values() for other in (e.settings.start_from, e.against) if other}  # fmt: skip
    assert {own for own, _ in scales.values()} == {*SCALES}
    assert all(own == other for own, other in scales.values())


def test_table3_at_paper_scale_is_table_11_of_the_paper():
    s = find("table3/gpt2-medium/lora-r4", "paper").settings
    assert (s.rank, s.alpha, s.lora_dropout, s.targets) == (4, 32, 0.1, ("query", "value"))
    assert (s.learning_rate, s.epochs, s.batch_size, s.warmup_steps) == (2e-4, 5, 8, 500)
    assert (s.weight_decay, s.label_smoothing, s.adam_epsilon, s.max_grad_norm) == (0.01, 0.1, 1e-6, 0.0)
    assert (s.beams, s.length_penalty, s.no_repeat_ngram, s.max_new_tokens) == (10, 0.9, 4, 64)
    assert s.keep == "best-epoch"


def test_the_official_code_differs_where_protocol_says_and_nowhere_else():
    paper = vars(find("table3/gpt2-medium/lora-r4").settings)
    official = vars(find("table3/gpt2-medium/lora-r4/official-code").settings)
    assert {k: v for k, v in official.items() if paper[k] != v} == {
        "length_penalty": 0.8,
        "keep": "last",
        "precision": "float32",
    }


@pytest.mark.parametrize(("table", "task"), [("table13", "dart"), ("table14", "webnlg")])
def test_tables_13_and_14_have_their_columns_of_table_11_and_every_row_of_the_paper(table, task):
    lora = find(f"{table}/gpt2-medium/{task}/lora-r4").settings
    assert (lora.rank, lora.alpha, lora.learning_rate, lora.epochs, lora.batch_size) == (4, 32, 2e-4, 5, 8)
    assert (lora.warmup_steps, lora.beams, lora.length_penalty, lora.no_repeat_ngram) == (500, 10, 0.8, 4)
    on = 0.0 if task == "dart" else 1.0
    assert (lora.weight_decay, lora.lora_dropout, lora.label_smoothing) == (0.01 * on, 0.1 * on, 0.1 * on)
    rows = {(row["model"], row["method"], row["trainable"]) for row in read_table("paper.csv") if row["table"] == table}
    assert len(rows) == 11
    assert {experiment.cell for experiment in select(table, "paper")} == rows


@pytest.mark.parametrize("scale", ["paper", "cpu"])
def test_table_16_asks_three_methods_with_the_same_few_rows(scale):
    by_size = {}
    for experiment in select("table16", scale):
        settings = experiment.settings
        by_size.setdefault(settings.train_rows, []).append((settings.method, settings.epochs, settings.batch_size))
        assert settings.task == "mnli" and settings.prefix_tokens in (None, 16) and settings.rank in (None, 8)
        assert scale == "paper" or settings.learning_rate == low_data.RATES[experiment.row]
    sizes = {"paper": (100, 1_000, 10_000), "cpu": (100, 1_000, 8_000)}[scale]
    assert tuple(by_size) == sizes
    for rows in by_size.values():
        assert {method for method, *_ in rows} == {"full", "lora", "prelayer"} and len({row[1:] for row in rows}) == 1
    if scale == "paper":  # Table 17
        assert [by_size[size][0][1:] for size in sizes] == [(40, 20), (40, 20), (4, 100)]


def test_quick_looks_no_further_than_the_repository():
    quick = [e.settings for e in EXPERIMENTS.values() if e.scale == "quick"]
    assert {*glue_experiments.QUICK_TASKS.values(), "e2e-builtin", "triples-builtin"} == {
        settings.task for settings in quick
    }
    assert all(BASES[settings.model].place != "hub" for settings in quick)


GLUE_RATES = glue_experiments.CPU_LEARNING_RATES | other_methods.GLUE_RATES
GLUE_GRIDS = glue_experiments.LEARNING_RATE_GRID | other_methods.GLUE_GRID
E2E_RATES = e2e_experiments.CPU_LEARNING_RATES | other_methods.E2E_RATES
E2E_GRIDS = e2e_experiments.LEARNING_RATE_GRID | other_methods.E2E_GRID
SEARCHED_AT = {"lora": "lora-r8", "lora-all": "lora-all-r8", "lora-mlp": "lora-mlp-r4"}  # the rank of a kind's rate
SEARCHED = [  # search, method, the rate that is used at `cpu`, the grid it is from, which end of the score is better
    *(("gpt2-mini", method, rate, E2E_GRIDS[method], min) for method, rate in E2E_RATES.items()),
    *(
        (f"minilm/{task}", method, rate, GLUE_GRIDS[method] + FURTHER_RATES.get((task, method), ()), max)
        for method, rates in GLUE_RATES.items()
        for task, rate in rates.items()
    ),
    *(
        ("smollm2-135m", row, smollm2.RATES[kind], smollm2.GRIDS[row], min)
        for kind, row in ({kind: kind for kind in smollm2.RATES} | SEARCHED_AT).items()
    ),
    *(
        ("minilm/mnli/1000", row.removesuffix("-r8"), rate, low_data.GRIDS[row], max)
        for row, rate in low_data.RATES.items()
    ),
]


def best_rate(summary, search, method, grid, better, broken=()):
    """The best rate of a grid that is recorded at `cpu` to its last value, below the broken ones; else None."""
    searched = summary["experiment"].str.startswith(f"learning-rate/{search}/{method}/")
    lines = summary[
        searched & (summary["rule"] == "selection") & (summary["scale"] == "cpu") & (summary["value"] != "")
    ]
    scores = dict(zip(lines["learning_rate"].astype(float), lines["value"].astype(float), strict=True))
    whole = {rate: score for rate, score in scores.items() if rate < min(broken, default=math.inf)}
    return better(whole, key=whole.get) if scores.keys() == set(grid) else None


@pytest.mark.parametrize(("search", "method", "rate", "grid", "better"), SEARCHED)
def test_a_rate_lies_inside_its_grid_and_is_the_best_of_one_that_is_recorded(search, method, rate, grid, better):
    assert min(grid) < rate < max(grid) and rate in grid
    broken = smollm2.BROKEN.get(method, ())[:1] if rate == smollm2.RATES.get(method) else ()
    best = best_rate(read_summary(), search, method, grid, better, broken)
    assert best in (rate, None), f"{rate:g} is used, while {best:g} is the best of its grid"


def test_the_best_rate_is_that_of_a_whole_grid():
    assert E2E_RATES.keys() == E2E_GRIDS.keys() and GLUE_RATES.keys() == GLUE_GRIDS.keys()
    lines = [("mrpc/full", 1, 80), ("mrpc/full", 2, 70), ("rte/full", 2, 65)]
    summary = pd.DataFrame(lines, columns=["experiment", "learning_rate", "value"], dtype=str)
    names = "learning-rate/minilm/" + summary["experiment"] + "/" + summary["learning_rate"]
    summary = summary.assign(experiment=names, rule="selection", scale="cpu")
    assert best_rate(summary, "minilm/mrpc", "full", (1, 2), max) == 1
    assert best_rate(summary, "minilm/mrpc", "full", (1, 2), min) == 2
    assert best_rate(summary, "minilm/rte", "full", (1, 2), max) is None
    assert best_rate(read_summary(), "gpt2-mini", "lora", E2E_GRIDS["lora"], min) == E2E_RATES["lora"]


def searched_row(row, table3, variants):
    """The settings of the row of Table 3, or of the variants, whose rate was searched."""
    if row in other_methods.VARIANTS:
        return find(f"variants/{variants}/{row}").settings
    return find(f"table3/{table3}/{'lora-r4' if row == 'lora' else row}").settings


@pytest.mark.parametrize("row", E2E_GRIDS)
def test_every_candidate_at_cpu_is_its_row_but_for_the_rate_and_fewer_training_rows(row):
    settings = searched_row(row, "gpt2-mini", "gpt2-mini")
    assert settings.learning_rate == E2E_RATES[row]
    for rate in E2E_GRIDS[row]:
        candidate = find(f"learning-rate/gpt2-mini/{row}/{rate:g}", "cpu").settings
        search = {"learning_rate": rate, "evaluate": "selection", "train_rows": 8_000}
        assert candidate == replace(settings, **search)


@pytest.mark.parametrize("row", e2e_experiments.PAPER_GRID | other_methods.PAPER_GRID)
def test_the_rates_of_e2e_lie_inside_the_grids_at_paper_scale(row):
    settings = searched_row(row, "gpt2-medium", "gpt2")
    grid = [e.settings for e in select("learning-rate", "paper") if e.name.split("/")[2] == row]
    rates = [candidate.learning_rate for candidate in grid]
    assert min(rates) < settings.learning_rate < max(rates) and settings.learning_rate in rates
    for candidate in grid:
        search = {"learning_rate": candidate.learning_rate, "epochs": 1, "evaluate": "selection", "keep": "last"}
        assert candidate == replace(settings, **search)


def test_one_name_is_declared_twice_only_with_the_same_settings():
    first = Experiment("t/gpt2/a", "a", Settings("e2e", "gpt2", "full", 1e-4, 1, 8), "paper")
    again = replace(first, about="the same work", cell=("GPT-2 S", "FT", "124M"))
    assert by_name([first, again]) == {"t/gpt2/a": replace(first, cell=again.cell)}
    other = replace(first, settings=replace(first.settings, epochs=2))
    with pytest.raises(ValueError, match="t/gpt2/a is declared twice, with different settings; rename one of them"):
        by_name([first, other])


@pytest.mark.parametrize("task", ["e2e", "mrpc", "rte"])
def test_large_adapters_of_either_kind_have_about_as_many_parameters(task):
    place = "table3/gpt2-mini" if task == "e2e" else f"table2/minilm/{task}"
    rows = ("adapter-l-wide" if task == "e2e" else "adapter-p", "adapter-h")
    counts = [trained_parameters(find(f"{place}/{row}").settings)[0] for row in rows]
    assert max(counts) < 1.1 * min(counts)


def test_glue_s_full_fine_tuning_has_a_row_that_starts_where_lora_does():
    for model in glue_experiments.PAPER_MODELS:
        for task in glue_experiments.GLUE_TASKS:
            settings = {row: e.settings for row in ("full", "full-from-mnli", "lora-r8")
                        if (e := EXPERIMENTS.get(f"table2/{model}/{task}/{row}"))}  # fmt: skip
            assert settings["full"].start_from is None
            from_mnli = settings["lora-r8"].start_from is not None
            assert ("full-from-mnli" in settings) == from_mnli == (task in glue_experiments.FROM_MNLI)
            if from_mnli:
                start = f"table2/{model}/mnli/full"
                assert settings["full-from-mnli"] == replace(settings["full"], start_from=start)


def test_at_cpu_rte_alone_starts_from_mnli_with_every_method_and_lora_and_full_fine_tuning_have_both_starts():
    rows = {e.name: e.settings for e in select("table2", "cpu")}
    from_mnli = {name: settings for name, settings in rows.items() if settings.start_from}
    assert {settings.task for settings in from_mnli.values()} == {"rte"}
    plain = {name for name, settings in rows.items() if settings.task == "rte" and name not in from_mnli}
    assert plain == {"table2/minilm/rte/full", "table2/minilm/rte/lora-r8-restricted"}
    for settings in from_mnli.values():
        start = rows[settings.start_from]
        same = {"task": "mnli", "learning_rate": start.learning_rate, "epochs": 2, "train_rows": 8_100}
        assert start == replace(settings, start_from=None, **same)
    for settings in (e.settings for e in select("learning-rate", "cpu", ["rte"])):
        [row] = {s.start_from for s in from_mnli.values() if s.method == settings.method and s.dropped_layers == 0}
        assert settings.start_from == row


def test_three_tasks_have_the_rows_of_a_subset_at_cpu_and_all_at_paper():
    for task in glue_experiments.GLUE_TASKS:
        train_rows = find(f"table2/minilm/{task}/full").settings.train_rows
        assert train_rows == (8_100 if task in ("mnli", "qnli", "qqp") else None)
        assert find(f"table2/roberta-base/{task}/full").settings.train_rows is None


def test_a_sweep_does_the_same_work_once():
    rows = ["full", "lora-r2", "lora-r4", "lora-r8", "top2", "bitfit", "adapter-l", "adapter-l-wide", "adapter-h"]
    declared = [e.name for e in select("table3", "cpu", rows=["gpt2-mini"])]
    assert declared == [f"table3/gpt2-mini/{row}" for row in (*rows, "prelayer")]
    for scale, number in (("cpu", 10 + 15), ("paper", 9 + 9 + 15)):  # 15 of SmolLM2-135M
        assert len(select("table3", scale)) == number
    assert [e.name for e in select("table3", "quick", rows=["full"])] == ["table3/gpt2-mini/e2e-builtin/full"]
    for table in {e.table for e in EXPERIMENTS.values()}:
        settings = [e.settings for scale in SCALES if (table, scale) in TABLES for e in select(table, scale)]
        assert len({*settings}) == len(settings)


TABLES = {(e.table, e.scale) for e in EXPERIMENTS.values()}


def test_rows_of_several_scales_are_refused_and_of_one_need_no_scale():
    for rows, scales in ((None, "quick, cpu, paper"), (["gpt2-mini"], "quick, cpu")):
        with pytest.raises(ValueError, match=f"these rows of table3 are of the scales {scales}: choose one with --sc"):
            select("table3", rows=rows)
    assert {e.scale for e in select("table3", rows=["gpt2-medium", "gpt2-large/full"])} == {"paper"}
    assert select("table2", rows=["minilm/mrpc"]) == select("table2", "cpu", rows=["mrpc"])


@pytest.mark.parametrize("scale", SCALES)
def test_adaptive_rank_has_the_budget_of_plain_lora(scale):
    adaptive = select("rank-over-time", scale, rows=["adaptive"])
    assert len(adaptive) == len(SCHEDULES[scale])
    for experiment in adaptive:
        plain = find(experiment.against).settings
        assert plain.rank == 8
        assert trained_parameters(experiment.settings)[0] == trained_parameters(plain)[0]


# Rank over time: scale -> base and task -> steps between validations, the fall that is no plateau, steps between
# reallocations, pairs of rank 1.
SCHEDULES = {
    "paper": {
        "gpt2": (1000, 0.01, 2000, 192), "gpt2-medium": (1000, 0.01, 2000, 384),
        "roberta-base/mrpc": (100, 0.01, 150, 192),
    },
    "cpu": {
        "gpt2-mini": (150, 0.02, 400, 64), "minilm/mrpc": (50, 0.01, 75, 96), "smollm2-135m": (150, 0.02, 100, 480),
    },
    "quick": {"gpt2-mini/e2e-builtin": (40, 0.01, 40, 64), "minilm/paraphrase-builtin": (10, 0.01, 5, 96)},
}  # fmt: skip
OLD_STAGES = {"frozen": {}, "hybrid": {"old_stages": 0.1}, "unfrozen": {"old_stages": 1.0}}  # frozen where not set
VARIANTS = {
    "rank-stabilised": {"rank_stabilised": True},
    "lora-plus": {"b_learning_rate_ratio": 16.0},
    "all-matrices": {"targets": ("query", "key", "value", "output", "mlp_in", "mlp_out")},
}


def declared_over_time(validations, fall, reallocations, budget):
    """Row -> the settings in which it differs from plain LoRA."""
    sequential = {"method": "sequential-lora", "rank": None, "rank_stages": (2, 4, 6, 8)}
    plateau = {"stage_trigger": "plateau", "schedule_every": validations, "min_improvement": fall, "grace": 1}
    rows = {
        "adaptive": {"method": "adaptive-lora", "rank": None, "schedule_every": reallocations, "rank_budget": budget}
    }
    for old, share in OLD_STAGES.items():
        rows[f"sequential-fixed-{old}"] = sequential | {"stage_trigger": "fixed"} | share
        rows[f"sequential-plateau-{old}"] = sequential | plateau | share
    return rows


def differences_from_plain_lora(table, scale):
    """Name -> the settings of the table's experiment in which it differs from the one it is measured against."""
    differences = {}
    for experiment in select(table, scale):
        ours, plain = (vars(each.settings) for each in (experiment, find(experiment.against)))
        differences[experiment.name] = {key: value for key, value in ours.items() if value != plain[key]}
    return differences


@pytest.mark.parametrize("scale", SCALES)
def test_rank_over_time_differs_from_plain_lora_in_its_schedule_and_nowhere_else(scale):
    assert differences_from_plain_lora("rank-over-time", scale) == {
        f"rank-over-time/{part}/{row}": facts
        for part, schedule in SCHEDULES[scale].items()
        for row, facts in declared_over_time(*schedule).items()
    }


@pytest.mark.parametrize("scale", SCALES)
def test_a_variant_of_lora_differs_from_plain_lora_in_one_setting_and_where_it_has_its_own_in_the_rate(scale):
    rates = {"lora-plus": 5e-5} if scale == "paper" else {row: E2E_RATES[row] for row in VARIANTS}
    place = {"paper": "gpt2", "cpu": "gpt2-mini", "quick": "gpt2-mini/e2e-builtin"}[scale]
    int8 = {"variants/smollm2-135m/lora-r4-int8": {"int8_base": True}} if scale == "cpu" else {}
    assert differences_from_plain_lora("variants", scale) == int8 | {
        f"variants/{place}/{row}": facts | ({"learning_rate": rates[row]} if row in rates else {})
        for row, facts in VARIANTS.items()
    }


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no experiment is called 'table3/gpt2/lora-r5'; nearest: .*table3/gpt2/lora-r"
    ):
        find("table3/gpt2/lora-r5")


def test_rows_are_named_by_any_parts_of_their_names_that_follow_each_other():
    names = {e.name for e in select("learning-rate", "cpu", rows=["cola/full"])}
    assert names == {f"learning-rate/minilm/cola/full/{rate}" for rate in GLUE_GRIDS["full"]}
    names = {e.name for e in select("table2", "cpu", rows=["mrpc/lora-r8", "rte"])}
    assert {"table2/minilm/mrpc/lora-r8", "table2/minilm/rte/full"} <= names
    assert all(name.endswith("mrpc/lora-r8") or "/rte/" in name for name in names)


def test_an_unknown_table_row_or_scale_is_refused():
    with pytest.raises(ValueError, match=r"the tables are .*table3"):
        select("table99", "cpu")
    with pytest.raises(ValueError, match=r"table3 has no row lora-r5; its rows, .*: gpt2-mini/full, gpt2-mini/lora-r2"):
        select("table3", "cpu", rows=["lora-r5"])
    for call in (lambda: find("table3/gpt2/full", "large"), lambda: select("table3", "large")):
        with pytest.raises(ValueError, match="scale must be one of quick, cpu, paper, found 'large'"):
            call()
    with pytest.raises(ValueError, match="released/gpt2-medium/e2e is of scale paper; nearest:"):
        find("released/gpt2-medium/e2e", "cpu")


@pytest.mark.parametrize(
    ("old", "scale", "new"),
    [
        ("pitfalls/e2e/correct", "cpu", ["pitfalls/gpt2-mini/correct (scale cpu)"]),
        ("pitfalls/e2e/correct", None, ["pitfalls/gpt2-mini/correct (scale cpu)",
                                        "pitfalls/gpt2-medium/correct (scale paper)"]),
        ("pitfalls/glue-mrpc/padded", "cpu", ["pitfalls/minilm/mrpc/padded (scale cpu)"]),
        ("learning-rate/glue-rte/lora/0.00025", None, ["learning-rate/minilm/rte/lora/0.00025 (scale cpu)"]),
        ("table3/gpt2/full", "cpu", ["table3/gpt2-mini/full (scale cpu)"]),
        ("table2/roberta-base/mrpc/lora-r8", "quick", ["table2/minilm/paraphrase-builtin/lora-r8 (scale quick)"]),
        ("table2/roberta-large/mrpc/adapter-h-6.0M", "cpu", ["table2/minilm/mrpc/adapter-h (scale cpu)"]),
    ],
)  # fmt: skip
def test_an_old_name_is_answered_with_the_new_one(old, scale, new):
    with pytest.raises(ValueError, match="a name has the base that is trained: expected") as refused:
        find(old, scale)
    assert all(name in str(refused.value) for name in new)
    assert all(find(name.split(" ")[0]) for name in new)


def test_every_record_is_of_an_experiment_as_it_is_declared_now_and_stands_under_its_name():
    paths = sorted((files.ROOT / "results" / "runs").glob("*/*.json"))
    assert paths
    for path in paths:
        record = json.loads(path.read_text(encoding="utf-8"))
        experiment = find(record["name"], path.parent.name)
        assert record["scale"] == experiment.scale
        assert path.stem == records.run_id(experiment.name, record["seed"])
        assert records.is_declared(record, experiment.settings), path
        assert record.get("predictions") in (None, f"{path.stem}.jsonl")


# the range of each setting

COUNTS = ("epochs", "batch_size", "rank", "top_layers", "bottleneck", "prefix_tokens", "train_rows", "beams",
          "max_new_tokens", "max_length", "schedule_every", "patience", "rank_budget")  # fmt: skip
ABOVE_ZERO = ("learning_rate", "alpha", "b_learning_rate_ratio", "adam_epsilon", *COUNTS)
FROM_ZERO = ("warmup_steps", "dropped_layers", "weight_decay", "max_grad_norm", "no_repeat_ngram", "min_improvement",
             "grace")  # fmt: skip
SHARES = ("warmup_ratio", "lora_dropout", "label_smoothing", "head_dropout")
OUT_OF_RANGE = [
    *((name, value) for name in ABOVE_ZERO for value in (-1, 0, 10**9, 10**400, math.inf, math.nan)),
    *((name, value) for name in FROM_ZERO for value in (-1, 10**9, 10**400, math.inf, math.nan)),
    *((name, value) for name in SHARES for value in (-0.1, 1, math.nan)),
    *(("length_penalty", value) for value in (-0.1, 10.1, math.inf, math.nan)),
    *(("old_stages", value) for value in (-0.1, 1.1, math.nan)),
    *(("rank_stages", value) for value in ((0, 2), (2, -4), (2, 10**400), (4, 2), (2, 2))),
    *(("adam_betas", value) for value in ((0.9, 1.0), (-0.1, 0.9), (math.nan, 0.9), (0.9,), ())),
]
SETTINGS = Settings("mrpc", "minilm", "lora", learning_rate=1e-3, epochs=1, batch_size=8)


@pytest.mark.parametrize("name", dict.fromkeys(name for name, _ in OUT_OF_RANGE))
def test_a_number_out_of_its_range_is_refused_by_its_name(name):
    for value in (value for setting, value in OUT_OF_RANGE if setting == name):
        with pytest.raises(ValueError, match=rf"^{name} must be .*, found {re.escape(str(value))}$"):
            replace(SETTINGS, **{name: value})


def test_the_ends_of_a_range_are_in_it():
    for names, value in (
        (ABOVE_ZERO, 1),
        (FROM_ZERO, 0),
        (SHARES, 0.0),
        (SHARES, 0.99),
        (("old_stages",), 1),
        (("length_penalty",), 10),
    ):
        for name in names:
            assert getattr(replace(SETTINGS, **{name: value}), name) == value


WRONG_TYPES = {  # the type of a setting -> values of another
    "int": (2.5, "2", True, None, np.int64(2)), "float": ("0.1", True, None, [0.1]), "str": (2, None, ("linear",)),
    "bool": (1, "no", None), "tuple[str, ...]": ("query", ["query"], {"query"}, (1,), None),
    "tuple[int, ...]": (2, [2, 4], (2.5, 4), ("2", "4")), "tuple[float, float]": (0.9, [0.9, 0.99], ("0.9", "0.99")),
}  # fmt: skip


@pytest.mark.parametrize("field", fields(Settings), ids=lambda field: field.name)
def test_a_value_of_another_type_is_refused_by_the_settings_name(field):
    for value in WRONG_TYPES[field.type.removesuffix(" | None")]:
        if value is not None or "None" not in field.type:
            with pytest.raises(ValueError, match=rf"^{field.name} must be of type {re.escape(field.type)}; found "):
                replace(SETTINGS, **{field.name: value})


@pytest.mark.parametrize("seed", [-1, 2**32, 1.5, math.nan, True, "0", None])
def test_a_seed_that_is_no_whole_number_of_its_range_is_refused(seed, tmp_path):
    with pytest.raises(ValueError, match=f"a seed is a whole number from 0 to 4,294,967,295, found {seed}"):
        Job(SETTINGS, seed, tmp_path)


@pytest.mark.parametrize("name", CHOICES)
def test_a_word_that_a_setting_may_not_be_is_refused_by_its_name(name):
    with pytest.raises(ValueError, match=rf"^{name} must be one of .*, found 'otherwise'$"):
        replace(SETTINGS, **{name: "otherwise"})
    for word in CHOICES[name]:
        assert getattr(replace(SETTINGS, **{name: word}), name) == word


def test_every_setting_that_is_a_word_has_its_words_and_every_number_its_range():
    of_catalogues = {"task", "model", "method", "start_from"}
    words = {f.name for f in fields(Settings) if f.type.startswith("str")} - of_catalogues
    assert words == {*CHOICES}
    numbers = {f.name for f in fields(Settings) if f.type.removesuffix(" | None") in ("int", "float")}
    assert numbers == {*ABOVE_ZERO, *FROM_ZERO, *SHARES, "length_penalty", "old_stages"}


@pytest.mark.parametrize(
    ("name", "trainable"),
    [
        ("table3/gpt2/full", 124_439_808),
        ("table3/gpt2/lora-r2", 73_728),
        ("table3/gpt2/lora-r4", 147_456),
        ("table3/gpt2/lora-r8", 294_912),
        ("table3/gpt2-medium/lora-r4", 393_216),
        ("table3/gpt2-large/lora-r4", 737_280),
    ],
)
def test_trainable_parameters_without_weights(name, trainable):
    assert trained_parameters(find(name, "paper").settings) == (trainable, 0)


def test_an_unknown_model_and_method_are_refused():
    with pytest.raises(ValueError, match="no model is called 'gpt3'"):
        architecture("gpt3")
    settings = replace(find("table3/gpt2-mini/full").settings, method="prompt")
    with pytest.raises(ValueError, match="no method is called 'prompt'"):
        apply_method(architecture("gpt2-mini"), settings)


PAPER_TABLES = ("table2", "table3", "table13", "table14")


def test_the_papers_cells_that_experiments_point_to_exist():
    paper = pd.read_csv(files.DATA / "paper.csv", dtype=str)
    rows = set(zip(paper.model, paper.method, paper.trainable, strict=True))
    cells = {e.cell for e in EXPERIMENTS.values() if e.cell}
    assert cells <= rows
    by_table = {table: {e.cell for e in EXPERIMENTS.values() if e.table == table and e.cell} for table in PAPER_TABLES}
    assert [*map(len, by_table.values())] == [14, 12, 11, 11]  # every row of them
    assert cells == set().union(*by_table.values())
    best = paper[
        (paper.table == "table3") & (paper.model == "GPT-2 M") & (paper.method == "LoRA") & (paper.metric == "BLEU")
    ]
    assert best.value.tolist() == ["70.4"]


def test_the_errors_of_earlier_reproductions_are_experiments_where_one_is_named():
    lines = read_table("earlier_reproductions.csv")
    mistakes = {experiment.row for experiment in EXPERIMENTS.values() if experiment.table == "pitfalls"}
    assert len(lines) == 16 and {line["experiment"] for line in lines} - {""} <= mistakes
    assert all(line[column] for line in lines for column in ("repository", "result", "error", "line"))
