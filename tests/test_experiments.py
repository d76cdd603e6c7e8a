"""The declarations: names, scales, variants, counts, and the paper's numbers."""

from dataclasses import replace

import pandas as pd
import pytest

import experiments_e2e
import experiments_glue
import experiments_methods
import experiments_pitfalls
import paths
from claims import read_summary
from experiments import EXPERIMENTS, SCALES, find, resolve, select
from methods import METHODS, apply_method, count_trained
from models import BASES, architecture
from tasks import TASKS


def test_the_fixed_names_are_there():
    for name in ("table3/gpt2-medium/lora-r4", "table3/gpt2/lora-r4", "table3/gpt2/full", "released/gpt2-medium/e2e"):
        assert find(name).name == name


def test_every_experiment_names_a_known_task_model_and_method_at_every_scale():
    for experiment in EXPERIMENTS.values():
        for scale in experiment.scales:
            settings = resolve(experiment, scale)
            assert settings.task in TASKS
            assert settings.model in BASES
            assert settings.method in METHODS


def test_table3_at_paper_scale_is_table_11_of_the_paper():
    s = resolve(find("table3/gpt2-medium/lora-r4"), "paper")
    assert (s.rank, s.alpha, s.lora_dropout, s.targets) == (4, 32, 0.1, ("query", "value"))
    assert (s.learning_rate, s.epochs, s.batch_size, s.warmup_steps) == (2e-4, 5, 8, 500)
    assert (s.weight_decay, s.label_smoothing, s.adam_epsilon, s.max_grad_norm) == (0.01, 0.1, 1e-6, 0.0)
    assert (s.beams, s.length_penalty, s.no_repeat_ngram, s.max_new_tokens) == (10, 0.9, 4, 64)
    assert s.keep == "best-epoch"


def test_the_official_code_differs_where_protocol_says_and_nowhere_else():
    paper = vars(resolve(find("table3/gpt2-medium/lora-r4"), "paper"))
    official = vars(resolve(find("table3/gpt2-medium/lora-r4/official-code"), "paper"))
    assert {k: v for k, v in official.items() if paper[k] != v} == {"length_penalty": 0.8, "keep": "last"}


def test_quick_looks_no_further_than_the_repository():
    for experiment in EXPERIMENTS.values():
        if "quick" in experiment.scales:
            settings = resolve(experiment, "quick")
            assert settings.task.endswith("-builtin")
            assert BASES[settings.model].place != "hub"


GLUE_RATES = experiments_glue.CPU_LEARNING_RATES | experiments_methods.GLUE_RATES
GLUE_GRIDS = experiments_glue.LEARNING_RATE_GRID | experiments_methods.GLUE_GRID
E2E_RATES = experiments_e2e.CPU_LEARNING_RATES | experiments_methods.E2E_RATES
E2E_GRIDS = experiments_e2e.LEARNING_RATE_GRID | experiments_methods.E2E_GRID
SEARCHED = [  # search, method, the rate that is used at `cpu`, the grid it is from, which end of the score is better
    *(("e2e", method, rate, E2E_GRIDS[method], min) for method, rate in E2E_RATES.items()),
    *(
        (f"glue-{task}", method, rate, GLUE_GRIDS[method] + experiments_glue.FURTHER_RATES.get((task, method), ()), max)
        for method, rates in GLUE_RATES.items()
        for task, rate in rates.items()
    ),
]


def best_rate(summary, search, method, grid, better):
    """The best rate of a grid that is recorded at `cpu` to its last value; else None."""
    searched = summary["experiment"].str.startswith(f"learning-rate/{search}/{method}/")
    found = summary[
        searched & (summary["rule"] == "selection") & (summary["scale"] == "cpu") & (summary["value"] != "")
    ]
    scores = dict(zip(found["learning_rate"].astype(float), found["value"].astype(float), strict=True))
    return better(scores, key=scores.get) if scores.keys() == set(grid) else None


@pytest.mark.parametrize(("search", "method", "rate", "grid", "better"), SEARCHED)
def test_a_rate_lies_inside_its_grid_and_is_the_best_of_one_that_is_recorded(search, method, rate, grid, better):
    assert min(grid) < rate < max(grid) and rate in grid
    best = best_rate(read_summary(), search, method, grid, better)
    assert best in (rate, None), f"{rate:g} is used, while {best:g} is the best of its grid"


def test_the_best_rate_is_that_of_a_whole_grid():
    assert E2E_RATES.keys() == E2E_GRIDS.keys() and GLUE_RATES.keys() == GLUE_GRIDS.keys()
    lines = [("mrpc/full", 1, 80), ("mrpc/full", 2, 70), ("rte/full", 2, 65)]
    summary = pd.DataFrame(lines, columns=["experiment", "learning_rate", "value"], dtype=str)
    names = "learning-rate/glue-" + summary["experiment"] + "/" + summary["learning_rate"]
    summary = summary.assign(experiment=names, rule="selection", scale="cpu")
    assert best_rate(summary, "glue-mrpc", "full", (1, 2), max) == 1
    assert best_rate(summary, "glue-mrpc", "full", (1, 2), min) == 2
    assert best_rate(summary, "glue-rte", "full", (1, 2), max) is None


E2E_ROWS = {"full": "table3/gpt2-medium/full", "lora": "table3/gpt2-medium/lora-r4"} | {
    row: f"variants/gpt2/{row}" if row in experiments_methods.VARIANTS else f"table3/gpt2-medium/{row}"
    for row in experiments_methods.E2E_GRID
}


@pytest.mark.parametrize("row", E2E_ROWS)
def test_every_candidate_at_cpu_is_its_row_but_for_the_rate_and_fewer_training_rows(row):
    for rate in E2E_GRIDS[row]:
        candidate = resolve(find(f"learning-rate/e2e/{row}/{rate:g}"), "cpu")
        search = {"learning_rate": rate, "evaluate": "selection", "train_rows": 8_000}
        assert candidate == replace(resolve(find(E2E_ROWS[row]), "cpu"), **search)
        assert resolve(find(E2E_ROWS[row]), "cpu").learning_rate == E2E_RATES[row]


@pytest.mark.parametrize("row", E2E_ROWS)
def test_the_rates_of_e2e_lie_inside_the_grids_at_paper_scale(row):
    settings = resolve(find(E2E_ROWS[row]), "paper")
    grid = [e for e in select("learning-rate", "paper") if e.name.split("/")[2] == row]
    rates = [e.paper.learning_rate for e in grid]
    assert min(rates) < settings.learning_rate < max(rates) and settings.learning_rate in rates
    for candidate in grid:
        search = {"learning_rate": candidate.paper.learning_rate, "epochs": 1, "evaluate": "selection", "keep": "last"}
        assert candidate.paper == replace(settings, **search)


def test_no_two_experiments_have_one_name():
    declared = (*experiments_e2e.E2E_EXPERIMENTS, *experiments_glue.GLUE_EXPERIMENTS,
                *experiments_methods.METHOD_EXPERIMENTS, *experiments_pitfalls.PITFALL_EXPERIMENTS)  # fmt: skip
    assert len(declared) == len(EXPERIMENTS)


@pytest.mark.parametrize("task", ["e2e", "mrpc", "rte"])
def test_large_adapters_of_either_kind_have_about_as_many_parameters(task):
    names = ("adapter-l-11M", "adapter-h") if task == "e2e" else ("adapter-p-3.0M", "adapter-h-6.0M")
    place = "table3/gpt2-medium" if task == "e2e" else f"table2/roberta-large/{task}"
    counts = []
    for name in names:
        settings = resolve(find(f"{place}/{name}"), "cpu")
        model = architecture(settings.model, getattr(TASKS[settings.task], "outputs", None))
        apply_method(model, settings)
        counts.append(count_trained(model)[0])
    assert max(counts) < 1.1 * min(counts)


def test_glue_s_full_fine_tuning_has_a_row_that_starts_where_lora_does():
    for model in experiments_glue.MODELS:
        for task in experiments_glue.GLUE_TASKS:
            of = {row: resolve(e, "paper") for row in ("full", "full-from-mnli", "lora-r8")
                  if (e := EXPERIMENTS.get(f"table2/{model}/{task}/{row}"))}  # fmt: skip
            assert of["full"].start_from is None
            from_mnli = of["lora-r8"].start_from is not None
            assert ("full-from-mnli" in of) == from_mnli == (task in experiments_glue.FROM_MNLI)
            if from_mnli:
                assert of["full-from-mnli"] == replace(of["full"], start_from=f"table2/{model}/mnli/full")


def test_at_cpu_rte_alone_starts_from_mnli_with_every_method_and_lora_and_full_fine_tuning_have_both_starts():
    rows = {e.name: resolve(e, "cpu") for e in select("table2", "cpu")}
    from_mnli = {name: settings for name, settings in rows.items() if settings.start_from}
    assert {settings.task for settings in from_mnli.values()} == {"rte"}
    plain = {name for name, settings in rows.items() if settings.task == "rte" and name not in from_mnli}
    assert plain == {"table2/roberta-base/rte/full", "table2/roberta-large/rte/lora-r8-restricted"}
    for settings in from_mnli.values():
        start = rows[settings.start_from]
        same = {"task": "mnli", "learning_rate": start.learning_rate, "epochs": 2, "train_rows": 8_100}
        assert start == replace(settings, start_from=None, **same)
    for search in (e for e in select("learning-rate", "cpu") if "/glue-rte/" in e.name):
        settings = resolve(search, "cpu")
        [row] = {s.start_from for s in from_mnli.values() if s.method == settings.method and s.dropped_layers == 0}
        assert settings.start_from == row


def test_three_tasks_have_the_rows_of_a_subset_at_cpu_and_all_at_paper():
    for task in experiments_glue.GLUE_TASKS:
        full = find(f"table2/roberta-base/{task}/full")
        assert resolve(full, "cpu").train_rows == (8_100 if task in ("mnli", "qnli", "qqp") else None)
        assert resolve(full, "paper").train_rows is None


def test_a_sweep_does_the_same_work_once():
    rows = ["full", "lora-r2", "lora-r4", "lora-r8"]
    others = ["top2", "bitfit", "adapter-l", "adapter-l-11M", "adapter-h", "prelayer"]
    names = [f"table3/gpt2/{row}" for row in rows] + [f"table3/gpt2-medium/{row}" for row in others]
    assert [e.name for e in select("table3", "cpu")] == names
    assert len(select("table3", "paper")) == 9 + 9
    assert [e.name for e in select("table3", "quick", rows=["full"])] == ["table3/gpt2/full"]


@pytest.mark.parametrize("scale", SCALES)
def test_adaptive_rank_has_the_budget_of_plain_lora(scale):
    adaptive = [e for e in EXPERIMENTS.values() if e.table == "rank-over-time" and e.row == "adaptive"]
    assert len(adaptive) == 3
    for experiment in adaptive:
        settings, plain = resolve(experiment, scale), resolve(find(experiment.against), scale)
        counts = []
        for each in (settings, plain):
            model = architecture(each.model, getattr(TASKS[each.task], "outputs", None))
            apply_method(model, each)
            counts.append(count_trained(model)[0])
        assert plain.rank == 8 and counts[0] == counts[1]


# Rank over time: part -> scale -> steps between validations, the fall that is no plateau, steps between reallocations,
# pairs of rank 1.
SCHEDULES = {
    "gpt2": {"paper": (1000, 0.01, 2000, 192), "cpu": (150, 0.02, 400, 64), "quick": (40, 0.01, 40, 64)},
    "gpt2-medium": {"paper": (1000, 0.01, 2000, 384), "cpu": (150, 0.02, 400, 64), "quick": (40, 0.01, 40, 64)},
    "roberta-base/mrpc": {"paper": (100, 0.01, 150, 192), "cpu": (50, 0.01, 75, 96), "quick": (10, 0.01, 5, 96)},
}
OLD_STAGES = {"frozen": {}, "hybrid": {"old_stages": 0.1}, "unfrozen": {"old_stages": 1.0}}  # frozen where not set
VARIANTS = {
    "rank-stabilised": {"rank_stabilised": True},
    "lora-plus": {"b_learning_rate_ratio": 16.0},
    "all-matrices": {"targets": ("query", "key", "value", "output", "mlp_in", "mlp_out")},
}


def declared_over_time(part, scale):
    """Row -> the settings in which it differs from plain LoRA."""
    validations, fall, reallocations, budget = SCHEDULES[part][scale]
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
    found = {}
    for experiment in (e for e in EXPERIMENTS.values() if e.table == table):
        ours, plain = (vars(resolve(each, scale)) for each in (experiment, find(experiment.against)))
        found[experiment.name] = {key: value for key, value in ours.items() if value != plain[key]}
    return found


@pytest.mark.parametrize("scale", SCALES)
def test_rank_over_time_differs_from_plain_lora_in_its_schedule_and_nowhere_else(scale):
    assert differences_from_plain_lora("rank-over-time", scale) == {
        f"rank-over-time/{part}/{row}": facts
        for part in SCHEDULES
        for row, facts in declared_over_time(part, scale).items()
    }


@pytest.mark.parametrize("scale", SCALES)
def test_a_variant_of_lora_differs_from_plain_lora_in_one_setting_and_where_it_has_its_own_in_the_rate(scale):
    rates = {"lora-plus": 5e-5} if scale == "paper" else {row: E2E_RATES[row] for row in VARIANTS}
    assert differences_from_plain_lora("variants", scale) == {
        f"variants/gpt2/{row}": facts | ({"learning_rate": rates[row]} if row in rates else {})
        for row, facts in VARIANTS.items()
    }


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no experiment is called 'table3/gpt2/lora-r5'; nearest: .*table3/gpt2/lora-r"
    ):
        find("table3/gpt2/lora-r5")


def test_rows_are_named_by_any_parts_of_their_names_that_follow_each_other():
    names = {e.name for e in select("learning-rate", "cpu", rows=["glue-cola/full"])}
    assert names == {f"learning-rate/glue-cola/full/{rate}" for rate in GLUE_GRIDS["full"]}
    names = {e.name for e in select("table2", "cpu", rows=["mrpc/lora-r8", "rte"])}
    assert {"table2/roberta-base/mrpc/lora-r8", "table2/roberta-base/rte/full"} <= names
    assert all(name.endswith("mrpc/lora-r8") or "/rte/" in name for name in names)


def test_an_unknown_table_row_or_scale_is_refused():
    with pytest.raises(ValueError, match=r"the tables are .*table3"):
        select("table99", "cpu")
    with pytest.raises(ValueError, match="table3 has no row lora-r5; its rows: full"):
        select("table3", "cpu", rows=["lora-r5"])
    with pytest.raises(ValueError, match="scale is one of"):
        resolve(find("table3/gpt2/full"), "large")
    with pytest.raises(ValueError, match="exists at scale paper only, not at cpu"):
        resolve(find("released/gpt2-medium/e2e"), "cpu")


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
    from lora import count_parameters

    settings = resolve(find(name), "paper")
    model = architecture(settings.model)
    apply_method(model, settings)
    assert count_parameters(model)[0] == trainable


def test_an_unknown_model_and_method_are_refused():
    from dataclasses import replace

    with pytest.raises(ValueError, match="no model is called 'gpt3'"):
        architecture("gpt3")
    settings = replace(resolve(find("table3/gpt2/full"), "quick"), method="prompt")
    with pytest.raises(ValueError, match="no method is called 'prompt'"):
        apply_method(architecture("gpt2-mini"), settings)


def test_the_papers_cells_that_experiments_point_to_exist():
    paper = pd.read_csv(paths.DATA / "paper.csv", dtype=str)
    rows = set(zip(paper.model, paper.method, paper.trainable, strict=True))
    cells = {e.cell for e in EXPERIMENTS.values() if e.cell}
    assert cells <= rows
    assert len(cells) == 26  # every row of Tables 2 and 3
    best = paper[
        (paper.table == "table3") & (paper.model == "GPT-2 M") & (paper.method == "LoRA") & (paper.metric == "BLEU")
    ]
    assert best.value.tolist() == ["70.4"]
