"""The declarations: names, scales, variants, counts, and the paper's numbers."""

import pandas as pd
import pytest

import experiments_e2e
import experiments_glue
import paths
from experiments import EXPERIMENTS, SCALES, find, resolve, select
from methods import METHODS, apply_method
from models import BASES, architecture
from tasks import TASKS


def test_the_fixed_names_are_there():
    for name in ("table3/gpt2-medium/lora-r4", "table3/gpt2/lora-r4", "table3/gpt2/full", "released/gpt2-medium/e2e"):
        assert find(name).name == name


def test_every_experiment_names_a_known_task_model_and_method_at_every_scale():
    for experiment in EXPERIMENTS.values():
        for scale in SCALES if experiment.only is None else (experiment.only,):
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
        if experiment.only is None:
            settings = resolve(experiment, "quick")
            assert settings.task.endswith("-builtin")
            assert BASES[settings.model].place != "hub"


def test_learning_rates_of_full_fine_tuning_and_lora_differ_and_lie_inside_their_grids():
    for declared in (experiments_e2e, experiments_glue):
        rates, grid = declared.CPU_LEARNING_RATES, declared.LEARNING_RATE_GRID
        assert rates["full"] != rates["lora"]
        for method, rate in rates.items():
            assert min(grid[method]) < rate < max(grid[method])


def test_a_sweep_does_the_same_work_once():
    names = [e.name for e in select("table3", "cpu")]
    assert names == ["table3/gpt2/full", "table3/gpt2/lora-r2", "table3/gpt2/lora-r4", "table3/gpt2/lora-r8"]
    assert len(select("table3", "paper")) == 9
    assert [e.name for e in select("table3", "quick", rows=["full"])] == ["table3/gpt2/full"]


def test_an_unknown_name_is_answered_with_the_nearest():
    with pytest.raises(
        ValueError, match=r"no experiment is called 'table3/gpt2/lora-r5'; nearest: .*table3/gpt2/lora-r"
    ):
        find("table3/gpt2/lora-r5")


def test_an_unknown_table_row_or_scale_is_refused():
    with pytest.raises(ValueError, match=r"the tables are .*table3"):
        select("table99", "cpu")
    with pytest.raises(ValueError, match="table3 has no row lora-r5; its rows: full"):
        select("table3", "cpu", rows=["lora-r5"])
    with pytest.raises(ValueError, match="scale is one of"):
        resolve(find("table3/gpt2/full"), "large")
    with pytest.raises(ValueError, match="exists at scale 'paper' only"):
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
    assert len(cells) == 11  # full and LoRA of two GPT-2s and three encoders, and the restricted LoRA row
    best = paper[
        (paper.table == "table3") & (paper.model == "GPT-2 M") & (paper.method == "LoRA") & (paper.metric == "BLEU")
    ]
    assert best.value.tolist() == ["70.4"]
