"""68.8 against 70.4: a full design from four trainings, and effects on scores that were made up to have them."""

from __future__ import annotations

from itertools import product

import pandas as pd
import pytest

import files
from analysis.factorial import effects, scores_of
from experiments.bleu_gap import DESIGNS, FACTORS, factors_of
from experiments.catalogue import EXPERIMENTS, find
from publish.sheets import effects_sheet
from synthetic_records import write_e2e

MEDIUM = DESIGNS["gpt2-medium"]
WORTH = {"official": 0.2, "best": 0.5, "0.9": -0.3, "blank-line": 0.05}  # BLEU of each factor's second level


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)


def bleu(cell):
    return 68.0 + sum(WORTH.get(level, 0.0) for level in cell)


@pytest.mark.parametrize("base", DESIGNS)
def test_every_combination_of_levels_is_one_declared_experiment(base):
    design, factors = DESIGNS[base], factors_of(base)
    assert list(design) == list(product(*factors.values())) and len(design) == (16 if base == "gpt2-medium" else 4)
    assert len({experiment.name for experiment in design.values()}) == len(design)
    assert all(EXPERIMENTS[experiment.name].settings == experiment.settings for experiment in design.values())


@pytest.mark.parametrize("base", DESIGNS)
def test_a_cell_has_the_settings_of_its_levels_and_of_the_adapter_it_decodes(base):
    fields = {"text": "official_text", "epoch": "keep", "length penalty": "length_penalty",
              "answer ends": "blank_line_ends"}  # fmt: skip
    for cell, experiment in DESIGNS[base].items():
        settings = vars(experiment.settings)
        trained = vars(find(experiment.settings.start_from or experiment.name).settings)
        for level, (factor, levels) in zip(cell, factors_of(base).items(), strict=True):
            assert settings[fields[factor]] == levels[level]
        search = {"length_penalty", "blank_line_ends", "epochs", "start_from"}
        assert {key for key in settings if settings[key] != trained[key]} <= search


def test_four_trainings_of_one_precision_one_of_them_a_row_of_table_3_make_all_cells():
    trained = {experiment.settings.start_from or experiment.name for experiment in MEDIUM.values()}
    assert len(trained) == 4 and "table3/gpt2-medium/lora-r4" in trained
    assert sum(experiment.settings.epochs > 0 for experiment in MEDIUM.values()) == 4
    assert len({experiment.settings.precision for experiment in MEDIUM.values()}) == 1


def test_effects_are_the_ones_that_the_scores_were_made_of():
    scores = {cell: {0: bleu(cell), 1: bleu(cell) + 0.1} for cell in MEDIUM}
    found = {effect.factor: effect for effect in effects(scores, FACTORS)}
    assert {name: effect.mean for name, effect in found.items()} == pytest.approx(
        {"text": 0.2, "epoch": 0.5, "length penalty": -0.3, "answer ends": 0.05}
    )
    assert {effect.pairs for effect in found.values()} == {16}  # 8 pairs of cells at two seeds
    assert (found["text"].start, found["text"].end) == ("rebuilt", "official")


def test_a_factor_that_matters_in_some_cells_only_shows_it_in_its_range():
    scores = {cell: {0: 68.0 + 2.0 * (cell[1:3] == ("best", "0.9"))} for cell in MEDIUM}
    found = {effect.factor: effect for effect in effects(scores, FACTORS)}
    assert (found["epoch"].mean, found["epoch"].least, found["epoch"].most) == (1.0, 0.0, 2.0)
    assert (found["text"].least, found["text"].most) == (0.0, 0.0)


def test_cells_are_paired_at_one_seed_and_what_lacks_its_pair_tells_nothing():
    one, other = ("official", "best", "0.8", "blank-line"), ("official", "best", "0.9", "blank-line")
    found = {effect.factor: effect for effect in effects({one: {0: 68.0, 1: 60.0}, other: {0: 69.0, 2: 1.0}}, FACTORS)}
    assert (found["length penalty"].mean, found["length penalty"].pairs) == (1.0, 1)
    assert found["text"].mean is None and found["text"].pairs == 0
    with pytest.raises(ValueError, match=r"expected a level of each of .*, found the cell \('0\.7', 'blank-line'\)"):
        effects({("0.7", "blank-line"): {0: 1.0}}, factors_of("gpt2-mini"))


def test_text_that_had_to_be_rebuilt_is_no_evidence_of_what_the_official_text_is_worth(results):
    official, rebuilt = MEDIUM["official", "best", "0.9", "blank-line"], MEDIUM["rebuilt", "best", "0.9", "blank-line"]
    write_e2e(rebuilt.name, 0, 0.688)
    write_e2e(official.name, 0, 0.689, text="rebuilt")
    assert list(scores_of(MEDIUM, "BLEU")) == [("rebuilt", "best", "0.9", "blank-line")]
    write_e2e(official.name, 1, 0.69, text="official")
    assert scores_of(MEDIUM, "BLEU")["official", "best", "0.9", "blank-line"] == {1: pytest.approx(69.0)}


def test_the_sheet_has_a_row_a_factor_by_both_protocols_and_says_what_is_not_measured(results):
    design = DESIGNS["smollm2-135m"]
    assert set(effects_sheet("cpu")["BLEU"]) == {"not measured yet"}
    for (penalty, end), experiment in design.items():
        write_e2e(experiment.name, 0, (66 + (penalty == "0.9") + 2 * (end == "blank-line")) / 100)
    sheet = effects_sheet("cpu").set_index(["base", "factor"])
    assert sheet.loc[("smollm2-135m", "length penalty"), "BLEU"] == "+1.00 (+1.00 to +1.00)"
    assert sheet.loc[("smollm2-135m", "answer ends"), "BLEU (NLTK, lower case)"] == "+2.00 (+2.00 to +2.00)"
    assert sheet.loc[("smollm2-135m", "answer ends"), "pairs"] == "2"
    assert sheet.loc[("gpt2-mini", "answer ends"), "BLEU"] == "not measured yet"
    assert isinstance(effects_sheet("paper"), pd.DataFrame) and len(effects_sheet("paper")) == 4
