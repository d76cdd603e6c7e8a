"""Trainable parameters of the methods LoRA is compared with: the paper's formula, what is printed, what is trained."""

from __future__ import annotations

import pytest

from costs.parameter_counts import CELL, rounded
from files import read_table
from methods.adapters import adapter_parameters
from methods.catalogue import apply_method, count_trained
from methods.prefixes import prefix_parameters
from models import architecture
from tiny_models import settings

# Every row of Tables 2 and 3 with one of these methods: (model, method, trainable as printed) -> our settings of it.
# No bottleneck or number of tokens is in the paper. Those of RoBERTa-large are in the scripts of the official code;
# Adapter^D's 48 is AdapterHub's default (a sixteenth of the width), the others are found from the printed count.
ROWS = {
    ("RoBERTa-base", "BitFit", "0.1M"): ("bitfit", {}, 102_144),
    ("RoBERTa-base", "Adpt^D", "0.3M"): ("adapter-p", {"bottleneck": 48, "dropped_layers": 8}, 298_176),
    ("RoBERTa-base", "Adpt^D", "0.9M"): ("adapter-p", {"bottleneck": 48}, 894_528),
    ("RoBERTa-large", "Adpt^P†", "3.0M"): ("adapter-p", {"bottleneck": 64}, 3_171_840),
    ("RoBERTa-large", "Adpt^P†", "0.8M"): ("adapter-p", {"bottleneck": 16}, 811_392),
    ("RoBERTa-large", "Adpt^H†", "6.0M"): ("adapter-h", {"bottleneck": 64}, 6_343_680),
    ("RoBERTa-large", "Adpt^H†", "0.8M"): ("adapter-h", {"bottleneck": 8}, 835_968),
    ("GPT-2 M", "Adapter^L", "0.37M"): ("adapter-l", {"bottleneck": 6}, 368_784),
    ("GPT-2 M", "Adapter^L", "11.09M"): ("adapter-l", {"bottleneck": 224}, 11_089_152),
    ("GPT-2 M", "Adapter^H", "11.09M"): ("adapter-h", {"bottleneck": 112}, 11_064_576),
    ("GPT-2 M", "FT^Top2", "25.19M"): ("top-layers", {"top_layers": 2}, 25_192_448),
    ("GPT-2 M", "PreLayer", "0.35M"): ("prelayer", {"prefix_tokens": 14}, 344_064),
    ("GPT-2 L", "Adapter^L", "0.88M"): ("adapter-l", {"bottleneck": 8}, 875_808),
    ("GPT-2 L", "Adapter^L", "23.00M"): ("adapter-l", {"bottleneck": 248}, 23_002_848),
    ("GPT-2 L", "PreLayer", "0.77M"): ("prelayer", {"prefix_tokens": 17}, 783_360),
}
# Where the count that the settings give is not the one that is printed.
DISAGREE = {tuple(row[key] for key in CELL) for row in read_table("count_notes.csv")}
BASES = {"RoBERTa-base": "roberta-base", "RoBERTa-large": "roberta-large"}
BASES |= {"GPT-2 M": "gpt2-medium", "GPT-2 L": "gpt2-large"}
SHAPE = {"roberta-base": (12, 768), "roberta-large": (24, 1024), "gpt2-medium": (24, 1024), "gpt2-large": (36, 1280)}


def by_formula(model: str, method: str, facts: dict[str, int]) -> int:
    """As section 5.1 counts; BitFit and FT^Top k have no formula there."""
    layers, width = SHAPE[model]
    if method == "prelayer":
        return prefix_parameters(width, facts["prefix_tokens"], layers)
    layers -= facts.get("dropped_layers", 0)
    adapters = layers * (2 if method == "adapter-h" else 1)
    return adapter_parameters(adapters, width, facts["bottleneck"], layers if method == "adapter-l" else 0)


def test_every_row_of_tables_2_and_3_with_these_methods_is_held_against_ours():
    printed = [row for row in read_table("paper.csv") if row["table"] in ("table2", "table3")]
    rows = {tuple(row[key] for key in CELL) for row in printed}
    assert {row for row in rows if row[1] not in ("FT", "LoRA", "LoRA†")} == ROWS.keys()
    assert rows > DISAGREE


@pytest.mark.parametrize("row", ROWS, ids=" ".join)
def test_trainable_parameters_are_those_of_the_formula_and_as_printed_or_known_to_differ(row):
    name, (method, facts, count) = BASES[row[0]], ROWS[row]
    family = "gpt2" if name.startswith("gpt2") else "roberta"
    model = architecture(name, None if family == "gpt2" else 2)
    plain = sum(p.numel() for p in model.parameters())
    apply_method(model, settings(method, family, **{"dropped_layers": 0} | facts))
    trained, _, total = count_trained(model)
    assert trained == count
    assert total == plain + (0 if method in ("bitfit", "top-layers") else count)
    if method not in ("bitfit", "top-layers"):
        assert by_formula(name, method, facts) == count
    assert (rounded(count, row[2]) == row[2]) == (row not in DISAGREE)


def test_what_the_counts_that_disagree_are_instead():
    assert 24 * 2 * 1024 * 64 == 3 * 2**20 and 48 * 2 * 1024 * 64 == 6 * 2**20
    houlsby = {rounded(adapter_parameters(48, 1024, r, norms), "11.09M") for r in range(400) for norms in (0, 24, 48)}
    assert "11.06M" in houlsby and "11.09M" not in houlsby
    assert 48 * 2 * 1024 * 112 == 24 * 2 * 1024 * 224
    for model, full, row in (("gpt2-medium", 354.92, "0.35M"), ("gpt2-large", 774.03, "0.77M")):
        layers, width = SHAPE[model]
        assert row not in {rounded(prefix_parameters(width, tokens, layers), row) for tokens in range(100)}
        assert rounded(full * 1e6 / 1000, row) == row


def test_layer_norms_that_the_formula_counts_and_the_official_code_leaves_frozen():
    frozen, trained = (adapter_parameters(48, 1024, 64, layer_norms) for layer_norms in (0, 48))
    assert (frozen, trained) == (6_343_680, 6_441_984)
    model = architecture("roberta-large", 2)
    norms = [p for n, p in model.named_parameters() if ".layer." in n and "LayerNorm" in n]
    assert trained - frozen == sum(p.numel() for p in norms)


def test_preembed_has_a_vector_a_token():
    model = architecture("gpt2-medium")
    apply_method(model, settings("preembed", prefix_tokens=16))
    assert count_trained(model)[0] == prefix_parameters(1024, 16) == 16_384


def test_of_gpt3s_prefixes_the_formula_gives_preembed_as_printed_and_prelayer_with_no_number_of_tokens():
    printed = {row["method"]: row["trainable"] for row in read_table("paper.csv") if row["table"] == "table4"}
    layers, width = 96, 12_288  # Table 15: 256 tokens before the context and 8 behind it, and 8 and 8 in every layer
    assert prefix_parameters(width, 256 + 8) == 3_244_032
    assert rounded(3_244_032, "3.2M") == printed["PreEmbed"]
    assert prefix_parameters(width, 8 + 8, layers) == 18_874_368
    counts = {rounded(prefix_parameters(width, tokens, layers), printed["PreLayer"]) for tokens in range(100)}
    assert "18.9M" in counts and printed["PreLayer"] not in counts


def test_gpt2_medium_has_so_many_biases():
    model = architecture("gpt2-medium")
    apply_method(model, settings("bitfit"))
    assert count_trained(model)[0] == 24 * 11 * 1024 + 1024  # in a layer 3 + 1 + 4 + 1 and two LayerNorms; and ln_f
