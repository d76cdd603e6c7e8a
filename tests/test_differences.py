"""The lines of data/differences.csv that are typed say what the code and the declared experiments do."""

from __future__ import annotations

import pytest
import torch

from analysis.differences import rows, text
from experiments.catalogue import EXPERIMENTS, find
from experiments.settings import OFFICIAL, Experiment
from methods.adapters import INITIAL_STD
from tiny_models import adapted
from training.optimizer import OfficialAdamW

PAPER = [e for e in EXPERIMENTS.values() if e.scale == "paper" and e.variant == "paper"]
TABLE2 = [e for e in PAPER if e.table == "table2"]


def line(where: str, setting: str) -> dict[str, str]:
    [found] = [row for row in rows() if (row["where"], row["setting"]) == (where, setting)]
    return found


def values(experiments: list[Experiment], *settings: str) -> list[set]:
    """The values of each setting over the experiments."""
    return [{getattr(e.settings, setting) for e in experiments} for setting in settings]


def test_full_fine_tuning_of_gpt2_has_the_recipe_of_lora_and_li_and_liangs_rate():
    full = [e for e in PAPER if e.table == "table3" and e.row == "full" and e.settings.model.startswith("gpt2")]
    [decay], [smoothing], [warmup], [batch] = values(
        full, "weight_decay", "label_smoothing", "warmup_steps", "batch_size"
    )
    said = line("e2e at every scale", "recipe of full fine-tuning")["ours"]
    expected = f"weight decay {decay:g}, label smoothing {smoothing:g}, {warmup} warm-up steps, batch {batch}"
    assert expected in said and expected.replace(f"batch {batch}", "batch 10") not in said
    lora, one = (vars(find(f"table3/gpt2-medium/{row}").settings) for row in ("lora-r4", "full"))
    assert {name for name in one if one[name] != lora[name]} == {
        "method", "learning_rate", "rank", "alpha", "lora_dropout", "targets"
    }  # fmt: skip


def test_full_fine_tuning_on_glue_has_one_recipe_for_all_tasks():
    said = line("glue at every scale", "recipe of full fine-tuning")["ours"]
    recipes = {}
    for model in ("roberta-base", "roberta-large", "deberta-v2-xxlarge"):
        full = [e for e in TABLE2 if e.row.startswith("full") and e.settings.model == model]
        [epochs], [batch], [recipes[model]] = values(full, "epochs", "batch_size", "learning_rate")
        kind = model.partition("-")[0].replace("deberta", "DeBERTa-XXL").replace("roberta", "RoBERTa")
        assert f"{kind} {epochs} epochs, batch {batch}, " in said
    base, large, xxl = map(text, recipes.values())
    assert f"{base} (base) or {large} (large)" in said and said.endswith(f"batch 32, {xxl}")


def test_rates_that_the_paper_does_not_print_are_those_of_the_rows():
    of_models = [e for e in PAPER if e.table in ("table2", "table3") and not e.settings.model.startswith("smollm2")]
    kinds = ([e for e in of_models if e.row.startswith(row)] for row in ("bitfit", "adapter-d", "prelayer"))
    [[bitfit], [drop], [prelayer]] = (values(kind, "learning_rate")[0] for kind in kinds)
    said = line("both at paper", "learning rates of BitFit, Adpt^D and PreLayer")["ours"]
    assert [float(rate) for rate in said.split(", ")] == [bitfit, drop, prelayer]


def test_adapters_of_roberta_large_have_the_printed_warm_up_and_epochs():
    adapters = [e for e in TABLE2 if e.settings.method in ("adapter-h", "adapter-p") and e.cell[0] == "RoBERTa-large"]
    [warmup], epochs = values(adapters, "warmup_ratio", "epochs")
    row = line("glue at every scale", "adapters of RoBERTa-large")
    assert f"warm-up {warmup:g}, {min(epochs)} to {max(epochs)} epochs" in row["paper"]
    assert row["paper"].endswith(": 0.1 and 5") and warmup != 0.1  # the scripts'


@pytest.mark.parametrize("method", ["adapter-h", "adapter-p"])
def test_the_second_matrix_of_an_adapter_begins_at_zero_and_the_first_does_not(method):
    row = line("both at every scale", "second matrix of an adapter at the start")
    assert row["ours"] == "zero" and row["paper"].startswith(f"N(0, {INITIAL_STD:g})")
    matrices = {n: p for n, p in adapted(method, "roberta").named_parameters() if ".adapters." in n}
    for name, parameter in matrices.items():
        assert parameter.any() == name.endswith("down.weight"), name


def test_weights_decay_before_the_step_and_after_it_they_would_differ_by_rate_times_decay():
    row = line("both at every scale", "weight decay")
    assert row["ours"].startswith("before it")
    names = ("table3/gpt2-medium/lora-r4", "table2/roberta-base/mnli/lora-r8")
    gpt2, roberta = (text(s.learning_rate * s.weight_decay) for s in (find(name).settings for name in names))
    assert row["effect"] == f"none: {gpt2} of a step with LoRA of GPT-2, {roberta} with that of RoBERTa-base"
    rate, decay = 0.1, 0.5
    weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))
    weight.grad = torch.ones_like(weight)
    OfficialAdamW([weight], epsilon=0.0, lr=rate, weight_decay=decay).step()
    before, after = 1 - rate * decay - rate, (1 - rate) * (1 - rate * decay)
    assert weight.item() == pytest.approx(before) and before - after == pytest.approx(-rate * decay * rate)


def test_glue_is_padded_to_the_longest_row_of_a_batch():
    assert "longest of a batch" in line("glue at every scale", "padding")["ours"]
    assert values(TABLE2, "pad_to_maximum") == [{False}]


@pytest.mark.parametrize(
    ("setting", "of_paper", "of_official"),
    [("training rows", {"hold_out": True}, {"hold_out": False}),
     ("relative positions of DeBERTa", {"frozen_positions": False}, {"frozen_positions": True})],
)  # fmt: skip
def test_the_official_variant_lacks_a_difference_that_the_papers_has(setting, of_paper, of_official):
    assert f"in the variant `{OFFICIAL}`" in line("glue at every scale", setting)["ours"]
    for name, expected in (("lora-r8", of_paper), (f"lora-r16/{OFFICIAL}", of_official)):
        settings = vars(find(f"table2/deberta-v2-xxlarge/mrpc/{name}").settings)
        assert {key: settings[key] for key in expected} == expected
