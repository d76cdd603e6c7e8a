"""The count table: every printed count beside what the settings give, and a note exactly where the two disagree."""

from __future__ import annotations

import pytest

from costs.parameter_counts import count_table, rounded, trained_parameters
from experiments.catalogue import EXPERIMENTS, find
from models import architecture


@pytest.fixture(scope="module")
def counts():
    return count_table().set_index(["model", "method", "printed"])


def test_every_row_that_an_experiment_repeats_is_in_the_table_once(counts):
    cells = {(e.table, *e.cell) for e in EXPERIMENTS.values() if e.cell and e.table in ("table2", "table3")}
    assert sorted((row["table"], *cell) for cell, row in counts.iterrows()) == sorted(cells)


def test_a_row_has_a_note_exactly_where_the_count_is_not_the_printed_one(counts):
    for cell, row in counts.iterrows():
        assert (rounded(row["counted"], cell[-1]) == cell[-1]) == row["agrees"] == (row["note"] == ""), cell
    assert (counts["agrees"].sum(), len(counts)) == (14, 26)


def test_a_row_says_the_setting_that_it_counts(counts):
    said = {
        ("RoBERTa-base", "Adpt^D", "0.3M"): "bottleneck 48, none in the first 8 layers",
        ("DeBERTa-XXL", "LoRA", "4.7M"): "rank 8",
        ("GPT-2 M", "FT^Top2", "25.19M"): "2 layers",
        ("GPT-2 M", "FT", "354.92M"): "",
        ("GPT-2 L", "PreLayer", "0.77M"): "17 tokens",
    }
    assert {cell: counts.loc[cell, "setting"] for cell in said} == said


@pytest.mark.parametrize(
    ("name", "trained", "head"),
    [
        ("table2/roberta-base/mrpc/lora-r8", 294_912, 592_130),
        ("table2/roberta-base/mnli/lora-r8", 294_912, 592_899),  # three outputs
        ("table2/roberta-large/mrpc/lora-r8", 786_432, 1_051_650),
        ("table2/deberta-v2-xxlarge/mrpc/lora-r8", 2_359_296, 2_363_906),
        ("table2/deberta-v2-xxlarge/mrpc/lora-r16/official-code", 4_718_592, 2_363_906),
        ("table3/gpt2-medium/lora-r4", 393_216, 0),
        ("table3/gpt2-large/lora-r4", 737_280, 0),
    ],
)
def test_known_counts(name, trained, head):
    assert trained_parameters(find(name, "paper").settings) == (trained, head)


def test_what_the_counts_of_lora_and_full_fine_tuning_that_disagree_are_instead(counts):
    assert rounded(4_718_592, "4.7M") == "4.7M"  # rank 16
    for model, prefix in (("GPT-2 M", "0.35M"), ("GPT-2 L", "0.77M")):
        per_rank = counts.loc[(model, "LoRA", prefix), "counted"] // 4
        assert prefix not in {rounded(rank * per_rank, prefix) for rank in range(100)}
        assert (model, "PreLayer", prefix) in counts.index
    for name, whole in (("roberta-base", "125"), ("roberta-large", "355")):
        assert f"{architecture(name, 2).num_parameters() / 1e6:.0f}" == whole
    assert rounded(counts.loc[("GPT-2 M", "FT", "354.92M"), "counted"], "354.92M") == "354.82M"
