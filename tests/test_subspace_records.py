"""Adapters are measured where runs keep them: known adapters give known numbers, and these reach every page."""

from __future__ import annotations

import json
import re
import sys
from itertools import combinations

import pytest
import torch

import files
import make
import notebook_tools
import synthetic_records
from adapter_files import WEIGHTS_FILE, load_lora
from analysis import subspace_records
from analysis.claims import judged
from analysis.comparisons import FAILS, HOLDS, MISSING, OPEN
from analysis.subspace_measurement import measure, measured
from analysis.subspace_records import LARGE, NORMS, SHARED, dimensions, path_of, quantities, read, row_of
from analysis.subspaces import amplification
from analysis.summary import parsed
from experiments.subspaces import RANKS, ROWS
from files import write_json
from known_adapters import save_known_adapter
from lora import remove_lora
from models import load_model
from publish import figures, result_files
from publish.figure_data import KINDS, figure_data
from publish.subspace_sheets import notes
from runs.run import Run

BASE, REAL = "gpt2-mini", "smollm2-135m"
MATRICES = [f"layer {layer} {projection}" for layer in (0, 2, 3) for projection in ("query", "value")]


@pytest.fixture
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    monkeypatch.setattr(files, "CHECKPOINTS", tmp_path / "checkpoints")
    return tmp_path / "results"


@pytest.fixture(scope="module")
def model():
    return load_model(BASE)


@pytest.fixture
def adapters(results, model):
    """Recorded runs of two seeds, whose adapters share four of eight directions."""
    for rank in RANKS:
        for seed in (0, 1):
            run = Run(row_of(BASE, rank), seed)
            synthetic_records.write(run.experiment.name, seed, history=[], dev_loss=2.0)
            save_known_adapter(model, run)


def test_known_adapters_give_known_similarities(adapters):
    found = quantities(measure(BASE, [0, 1]))
    for matrix in MATRICES:
        for rank in RANKS[:-1]:
            assert found[matrix, rank, "first_direction"] == pytest.approx({0: 1.0, 1: 1.0})
        assert found[matrix, LARGE, "shared_by_seeds"] == pytest.approx({0: 0.5, 1: 0.5})
    assert found["random", LARGE, "shared_by_random"][0] == pytest.approx(SHARED / 256, rel=0.5)
    assert {matrix for matrix, *_ in found} == {*MATRICES, "random"}


@pytest.mark.parametrize(("projection", "third"), [("query", 0), ("value", 2)])
def test_the_norms_are_those_of_the_projections_own_third_of_the_packed_matrix(adapters, model, projection, third):
    rows = [row for row in measure(BASE, [0, 1])["amplifications"] if row["matrix"] == f"layer 2 {projection}"]
    W = model.transformer.h[2].attn.c_attn.weight.T.detach()[256 * third : 256 * (third + 1)]
    load_lora(model, Run(row_of(BASE, 8), 1).adapter)
    layer = model.transformer.h[2].attn.c_attn
    merged = torch.cat(
        [layer.scaling * B @ layer.lora_A[:8].detach().double() for B in layer.lora_B.detach().double().split(256)]
    )
    remove_lora(model)
    delta = merged[256 * (third // 2) :][:256]
    (row,) = [row for row in rows if (row["rank"], row["seed"]) == (8, 1)]
    expected = (torch.linalg.norm(W).item(), torch.linalg.norm(delta).item(), *amplification(W, delta, 8))
    assert [row[norm] for norm in NORMS] == pytest.approx(expected, rel=1e-4)
    assert row["amplification"] == pytest.approx(row["norm_of_update"] / row["along_update"], rel=1e-4)


def test_the_base_is_as_it_was_and_the_runs_are_named_with_their_adapters_digests(adapters):
    found = measure(BASE, (1, 0, 1))
    assert found["seeds"] == [0, 1] and found["scale"] == "quick"
    names = [(run["experiment"], run["seed"]) for run in found["runs"]]
    assert names == [(f"{ROWS[BASE]}/lora-r{rank}", seed) for rank in RANKS for seed in (0, 1)]
    assert all(re.fullmatch("[0-9a-f]{64}", run["adapter_sha256"]) for run in found["runs"])
    assert len({run["adapter_sha256"] for run in found["runs"]}) == len(names)
    again = measure(BASE, [0, 1])
    assert [again[key] for key in ("similarities", "amplifications")] == [
        found["similarities"],
        found["amplifications"],
    ]


def test_what_is_measured_is_kept_small_and_not_measured_again(adapters, monkeypatch):
    kept = measured(BASE, [0, 1])
    assert path_of(BASE).stat().st_size < 50_000
    monkeypatch.setattr("analysis.subspace_measurement.measure", lambda *_: pytest.fail("measured again"))
    assert measured(BASE, [0, 1, 2]) == kept == read(BASE)


def test_the_command_prints_the_sheets_and_where_they_are_kept(adapters, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["make.py", "subspaces", BASE, "--seeds", "0", "1"])
    make.main()
    printed = capsys.readouterr().out
    assert re.search(r"layer 3 value +0\.500 |layer 3 value +1\.000 ±0\.000", printed)
    assert "GPT-3 175B, layer 48, LoRA Wq r=4 61.95 6.91" in re.sub(" +", " ", printed)
    assert f"kept in {path_of(BASE)}" in printed


def test_what_is_lacking_is_named_with_the_commands_that_make_it(results, adapters):
    with pytest.raises(ValueError, match="two seeds or more, to compare them; found"):
        measure(BASE, [0, 0])
    with pytest.raises(ValueError, match=r"a base whose subspaces are compared, gpt2-mini, .*; found 'gpt2'"):
        measure("gpt2", [0, 1])
    with pytest.raises(ValueError, match=r"9 recorded runs, 3 are not measured yet:\n  python code/reproduce.py run "):
        measure(BASE, [0, 1, 2])
    run = Run(row_of(BASE, 8), 1)
    weights = run.adapter / WEIGHTS_FILE
    weights.write_bytes(weights.read_bytes()[:-9])
    with pytest.raises(ValueError, match=r"expected a whole adapter_model\.safetensors"):
        measure(BASE, [0, 1])
    run.adapter.rename(run.adapter.with_name("elsewhere"))
    with pytest.raises(ValueError, match=r"found none of .*lora-r8 seed 1 in .*LORA_CHECKPOINT_DIR"):
        measure(BASE, [0, 1])
    assert not path_of(BASE).exists()


# From a measurement to the pages ----------------------------------------------------------------------------------


def keep(first=0.8, shared=0.4, update=1.0, weights=5.0, own=3.0, seeds=(0, 1, 2)):
    """A measurement of SmolLM2-135M that never was, the same for all matrices: what is given, and 0.1 at random."""

    def comparison(kind, matrix, rank, pair, similarity):
        grid = [[similarity] * len(dimensions(LARGE)) for _ in dimensions(rank)]
        return {"kind": kind, "matrix": matrix, "rank": rank, "seeds": list(pair), "grid": grid}

    matrices, pairs = ["layer 0 query", "layer 0 value"], list(combinations(seeds, 2))
    similarities = [
        comparison("ranks", matrix, rank, (seed, seed), first + seed / 1000)
        for matrix in matrices
        for rank in RANKS[:-1]
        for seed in seeds
    ]
    similarities += [comparison("seeds", matrix, LARGE, pair, shared) for matrix in matrices for pair in pairs]
    similarities += [comparison("random", "random", LARGE, pair, 0.1) for pair in pairs]
    norms = dict(zip(NORMS, (20.0, own, update, weights, 0.1, own / update), strict=True))
    content = {
        "base": REAL, "scale": "cpu", "started": "2026-11-30T10:00:00+00:00", "git_dirty": False, "seeds": list(seeds),
        "runs": [{"experiment": f"{ROWS[REAL]}/lora-r{rank}", "seed": seed} for rank in RANKS for seed in seeds],
        "similarities": similarities,
        "amplifications": [
            {"matrix": matrix, "rank": rank, "seed": seed} | norms
            for matrix in matrices for rank in RANKS for seed in seeds
        ],
    }  # fmt: skip
    write_json(path_of(REAL), content)
    return content


def findings():
    found = judged(parsed(result_files.summary_text([])))
    return [found[name, "cpu"] for name in ("same-first-direction", "seeds-share", "amplifies-new")]


def test_without_a_measurement_nothing_is_said(results):
    assert [finding.verdict for finding in findings()] == [MISSING] * 3
    assert not any("subspaces" in name for name in result_files.result_texts())
    assert figure_data("between-ranks", "subspaces", "cpu") == ""
    with pytest.raises(ValueError, match=r"could show; run `python code/make.py subspaces BASE`"):
        figures.draw("between-seeds", "subspaces", "cpu")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({}, [HOLDS, HOLDS, HOLDS]),
        ({"first": 0.4}, [FAILS, HOLDS, HOLDS]),
        ({"first": 0.51}, [FAILS, HOLDS, HOLDS]),  # above a half by less than the margin
        ({"shared": 0.1}, [HOLDS, FAILS, HOLDS]),  # as random matrices
        ({"update": 0.1, "own": 0.3}, [HOLDS, HOLDS, FAILS]),  # W has no more there than at random
        ({"weights": 1.0}, [HOLDS, HOLDS, FAILS]),  # the update repeats the first directions of W
        ({"own": 0.5}, [HOLDS, HOLDS, FAILS]),  # it is smaller than what it amplifies
    ],
)
def test_each_claim_of_section_7_holds_or_fails_by_what_was_measured(results, given, expected):
    keep(**given)
    assert [finding.verdict for finding in findings()] == expected


def test_a_claim_shows_the_numbers_it_rests_on_and_two_seeds_that_differ_decide_nothing(results):
    keep()
    first, seeds, new = findings()
    assert first.evidence == "similarity 0.801 (of single matrices and seeds, 0.800 to 0.802)" and first.n == 3
    assert seeds.evidence == "0.400 of 8 directions, of random matrices 0.100"
    assert new.evidence.endswith("over its update's: 5.00; amplification: 3.00")
    content = keep()
    for entry in content["similarities"]:
        if entry["kind"] == "ranks" and entry["seeds"][0] == 1:
            entry["grid"] = [[0.1] * len(row) for row in entry["grid"]]
    write_json(path_of(REAL), content)
    assert findings()[0].verdict == OPEN


def test_the_results_have_its_page_its_lines_and_its_figures(results):
    keep()
    texts = result_files.result_texts()
    page = texts["tables/subspaces-cpu.md"]
    assert "| layer 0 value | 8 | 20.00 ±0.00 | 3.00 ±0.00 | 1.000 ±0.000 | 5.000 ±0.000 | 0.100 ±0.000 |" in page
    assert "| GPT-3 175B, layer 48, LoRA Wq r=64 | 61.95 | 3.57 | 1.90 | 37.71 | 0.33 | - |" in page
    assert "[subspaces-cpu.md](subspaces-cpu.md)" in texts["tables/README.md"]
    lines = parsed(texts["summary.csv"])
    line = lines[lines["experiment"].str.endswith("/layer-0-query-r8") & (lines["metric"] == "first_direction")].iloc[0]
    assert (line["value"], line["n"], line["seeds"]) == ("0.801", "3", "0 1 2")
    assert line["each_seed"] == "0.8 0.801 0.802" and line["command"] == "python code/make.py subspaces smollm2-135m"
    result_files.write_results()
    names = {
        f"figures/subspaces-{kind}-cpu.{end}" for kind in ("between-ranks", "between-seeds") for end in ("csv", "png")
    }
    assert names <= result_files.present()


def test_every_figure_is_found_again_by_its_files_name_whatever_hyphens_it_has():
    scales = result_files.KEPT_SCALES
    drawn = [(name, table, scale) for name, kind in KINDS.items() for table in kind.tables for scale in scales]
    assert [result_files._drawn_as(f"{table}-{kind}-{scale}") for kind, table, scale in drawn] == drawn
    assert ("rates-and-ranks", "learning-rate", "cpu") in drawn


@pytest.mark.parametrize(("kind", "panels", "cell"), [("between-ranks", 2, "0.80"), ("between-seeds", 3, "0.40")])
def test_a_heat_map_has_a_panel_a_matrix_and_a_number_a_cell_none_of_them_cut_off(
    results, monkeypatch, kind, panels, cell
):
    keep()
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: kept.append(figure))
    figures.draw_text(figure_data(kind, "subspaces", "cpu"), kind, "subspaces", "cpu", results)
    (figure,) = kept
    assert len(figure.axes) == panels
    numbers = [text.get_text() for text in figure.axes[0].texts]
    assert len(numbers) == {"between-ranks": (1 + 4) * 7, "between-seeds": 7 * 7}[kind] and numbers[0] == cell
    assert "n\u00a0=\u00a03\u00a0seeds" in figure.get_suptitle()
    figure.canvas.draw()
    box, (width, height) = figure.get_tightbbox(), figure.get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height


def test_a_notebook_shows_a_measurement_or_that_there_is_none(results, monkeypatch):
    shown = []
    monkeypatch.setattr(notebook_tools, "display", shown.append)
    notebook_tools.show_subspaces(REAL)
    assert shown.pop().data == f"The subspaces of {REAL} are not measured yet: `python code/make.py subspaces {REAL}`."
    keep()
    notebook_tools.show_recorded("cpu")
    said = [piece.data for piece in shown if isinstance(getattr(piece, "data", None), str)]
    assert f"**Norms, as in Table 7: {REAL}**, scale `cpu`" in said
    assert sum(isinstance(getattr(piece, "data", None), bytes) for piece in shown) == 2  # both figures


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"amplifications": None}, "found no amplifications; delete it: `python code/make.py subspaces smollm2-135m`"),
        ({"base": "gpt2-mini"}, "expected a measurement of smollm2-135m, found one of gpt2-mini"),
    ],
)
def test_a_file_of_another_kind_or_base_is_refused(results, change, message):
    write_json(path_of(REAL), keep() | change)
    with pytest.raises(ValueError, match=message):
        subspace_records.read_all("cpu")


def test_a_number_that_was_edited_is_found(results):
    keep()
    text = path_of(REAL).read_text(encoding="utf-8")
    path_of(REAL).write_text(text.replace("0.801", "0.901"), encoding="utf-8")
    with pytest.raises(ValueError, match="is damaged"):
        read(REAL)
    path_of(REAL).write_text(json.dumps({"losses": [1.0]}), encoding="utf-8")
    with pytest.raises(ValueError, match="found no base, scale"):
        read(REAL)


@pytest.mark.parametrize("base", ROWS)
def test_the_rows_compared_differ_in_their_rank_and_where_they_do_in_their_rate_the_page_says_so(results, base):
    settings = [vars(row_of(base, rank).settings) for rank in RANKS]
    differing = {key for key in settings[0] if len({str(each[key]) for each in settings}) > 1}
    assert {"rank"} <= differing <= {"rank", "learning_rate"}
    assert {each["model"] for each in settings} == {base}
    assert {each["targets"] for each in settings} == {("query", "value")}
    said = [note for note in notes(keep() | {"base": base}) if "the learning rates are" in note]
    assert len(said) == ("learning_rate" in differing)
    assert all(f"{each['learning_rate']:g} (r={each['rank']})" in note for note in said for each in settings)
