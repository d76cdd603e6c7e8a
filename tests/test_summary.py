"""From records to the summary and its tables: on made-up runs whose numbers can be checked in the head."""

import csv
import re
import shutil
import subprocess
import sys
from dataclasses import replace

import pandas as pd
import pytest

import files
import reproduce
from analysis import summary
from analysis.paper_values import paper_value
from analysis.quantities import printed, quantities
from experiments.catalogue import EXPERIMENTS, find, select
from publish import pages, result_files
from publish.labels import HEADS
from publish.sheets import _place, parts, sheets, wide
from publish.tables import as_csv, as_markdown, as_text, table
from runs import records
from synthetic_records import write, write_e2e, write_glue

GLUE = ("MNLI", "SST-2", "MRPC", "CoLA", "QNLI", "QQP", "RTE", "STS-B")
FULL, LORA = "table3/gpt2-mini/full", "table3/gpt2-mini/lora-r4"
MRPC_FULL, MRPC_LORA = "table2/minilm/mrpc/full", "table2/minilm/mrpc/lora-r8"


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    return tmp_path


def cell(name, metric="BLEU", rule="last"):
    """The one row of the summary; numbers that are not there are None."""
    cells = summary.cells([find(name)])
    rows = cells[(cells.metric == metric) & (cells.rule == rule)].to_dict("records")
    assert len(rows) == 1
    return {key: None if not isinstance(value, dict) and pd.isna(value) else value for key, value in rows[0].items()}


# over seeds


def test_an_e2e_cell_is_the_mean_over_seeds_times_100_with_every_seed():
    for seed, bleu in ((2, 0.63), (0, 0.60), (1, 0.61)):
        write_e2e(LORA, seed, bleu)
    found = cell(LORA)
    assert (found["n"], found["seeds"], found["statistic"]) == (3, "0 1 2", "mean")
    assert found["each_seed"] == pytest.approx({0: 60, 1: 61, 2: 63})
    assert found["value"] == pytest.approx(184 / 3)
    assert found["spread"] == pytest.approx((7 / 3) ** 0.5)
    assert (found["low"], found["high"]) == pytest.approx((60, 63))
    assert cell(LORA, "CIDEr")["value"] == 2.25  # not times 100


def test_a_glue_cell_is_the_median_over_seeds_by_each_rule():
    write_glue(MRPC_LORA, 0, reported=[0.80, 0.90], held_out=[0.7, 0.6])
    write_glue(MRPC_LORA, 1, reported=[0.81, 0.91], held_out=[0.6, 0.7])
    write_glue(MRPC_LORA, 2, reported=[0.70, 0.95], held_out=[0.7, 0.6])
    assert cell(MRPC_LORA, "accuracy", "paper")["value"] == pytest.approx(91)
    assert cell(MRPC_LORA, "accuracy", "held-out")["value"] == pytest.approx(80)  # of 80, 91, 70
    assert cell(MRPC_LORA, "accuracy", "held-out")["statistic"] == "median"


def test_one_seed_has_a_value_and_neither_spread_nor_interval():
    write_e2e(LORA, 0, 0.6)
    assert [cell(LORA)[key] for key in ("value", "spread", "low", "high")] == [60, None, None, None]


def test_a_score_that_was_not_measured_is_empty_and_the_others_stay():
    write_e2e(LORA, 0, 0.6, scores={"METEOR": 0.4})
    write_e2e(LORA, 1, 0.6)  # without Java
    assert cell(LORA, "METEOR")["value"] is None
    assert cell(LORA, "METEOR")["n"] == 2
    assert cell(LORA, "ROUGE_L")["value"] == pytest.approx(70)


def test_a_run_that_chose_a_learning_rate_is_never_compared():
    write("learning-rate/gpt2-mini/lora/0.004", 0, dev_loss=1.23456)
    found = cell("learning-rate/gpt2-mini/lora/0.004", "dev_loss", "selection")
    assert (found["value"], found["verdict"], found["protocol"]) == (1.23456, None, "selection")


def test_mismatched_mnli_is_a_row_of_its_own():
    name = "table2/minilm/mnli/full"
    write_glue(name, 0, [0.8], [0.8], scores_validation_mismatched={"accuracy": 0.7})
    found = summary.cells([find(name)])
    main = found[(found.metric == "accuracy") & (found.rule == "paper")]
    assert dict(zip(main.protocol, main.value, strict=True)) == {"validation": 80, "validation_mismatched": 70}
    records.record_path(name, "cpu", 0).unlink()
    write_glue(name, 0, [0.8], [0.8])
    found = summary.cells([find(name)]).query("metric == 'accuracy' and rule == 'paper'")
    assert dict(zip(found.protocol, found.verdict, strict=True)) == {
        "validation": "reference", "validation_mismatched": "not measured"
    }  # fmt: skip


# which records count


def test_a_record_of_other_settings_or_another_task_version_is_left_out_and_counted():
    record = write_e2e(LORA, 0, 0.6)
    for seed, changes in ((1, {"task_version": 99}), (2, {"settings": record["settings"] | {"rank": 8}})):
        records.write_record(record | {"seed": seed} | changes)
    unknown = record["settings"] | {"a_setting_that_is_gone": 1}
    records.write_record(record | {"seed": 3, "settings": unknown})
    assert [r["seed"] for r in records.records_of(find(LORA))] == [0]
    assert cell(LORA)["left_out"] == 3
    assert "Left out: 3 records" in as_text(table(select("table3", "cpu")), "table3", "cpu")


def test_a_damaged_record_and_copies_are_left_out_counted_and_named(capsys):
    paths = {}
    for seed in (0, 1):
        write_e2e(LORA, seed, 0.6)
        paths[seed] = records.record_path(LORA, "cpu", seed)
    paths[1].write_text(paths[1].read_text(encoding="utf-8").replace('"BLEU": 0.6', '"BLEU": 0.7'), encoding="utf-8")
    for name in ("seed2", "seed0 (1)"):
        shutil.copy(paths[0], paths[0].with_stem(paths[0].stem.replace("seed0", name)))
    found = cell(LORA)
    assert (found["n"], found["seeds"], found["left_out"]) == (1, "0", 3)
    text = as_text(table(select("table3", "cpu")), "table3", "cpu")
    assert "Left out: 3 records" in text and text.endswith("kept apart at this scale: 3 damaged")
    assert capsys.readouterr().err.count("passed over: ") == 3


@pytest.mark.parametrize("text", ["", 'table\n"'])
def test_a_damaged_summary_is_named(results, text):
    (results / "summary.csv").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=rf"{results / 'summary.csv'} is damaged \(.*`make summary` makes it"):
        summary.read_summary()


def test_a_setting_newer_than_a_record_had_its_default_then():
    record = write_e2e(LORA, 0, 0.6)
    older = {key: value for key, value in record["settings"].items() if key != "rank_stabilised"}
    records.write_record(record | {"seed": 1, "settings": older})
    records.write_record(record | {"seed": 2, "settings": older | {"rank_stabilised": True}})
    assert [r["seed"] for r in records.records_of(find(LORA))] == [0, 1]


def test_scales_are_never_mixed():
    write_e2e(LORA, 0, 0.6)
    write_e2e("table3/gpt2-mini/e2e-builtin/lora-r4", 1, 0.9)
    write_e2e("table3/gpt2-mini/e2e-builtin/full", 0, 0.9)
    assert cell(LORA)["n"] == 1
    assert cell(LORA)["verdict"] == "no reference"  # full fine-tuning is recorded at another scale only


# what it is compared with


def test_the_difference_is_to_full_fine_tuning_at_the_same_seeds():
    for seed, bleu in ((0, 0.60), (1, 0.62), (5, 0.90)):
        write_e2e(FULL, seed, bleu)
    for seed, bleu in ((0, 0.61), (1, 0.64), (7, 0.10)):
        write_e2e(LORA, seed, bleu)
    found = cell(LORA)
    assert found["reference"] == FULL
    assert found["difference"] == pytest.approx(1.5)  # of +1 and +2
    half = 6.3138 * 0.5**0.5 / 2**0.5  # Student's at one degree of freedom
    assert (found["difference_low"], found["difference_high"]) == pytest.approx((1.5 - half, 1.5 + half), abs=1e-3)
    assert (found["verdict"], found["margin"]) == ("inconclusive", 1.0)
    assert cell(FULL)["verdict"] == "reference"


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [((0.600, 0.611, 0.622), "equivalent"), ((0.70, 0.71, 0.72), "better"), ((0.5, 0.51, 0.52), "worse")],
)
def test_the_verdict_follows_from_the_paired_differences(ours, verdict):
    for seed, (bleu, reference) in enumerate(zip(ours, (0.60, 0.61, 0.62), strict=True)):
        write_e2e(LORA, seed, bleu)
        write_e2e(FULL, seed, reference)
    assert cell(LORA)["verdict"] == verdict


def test_fewer_slot_errors_are_better():
    for seed in (0, 1):
        write_e2e(FULL, seed, 0.6, scores={"slot_error_rate": 0.10 + seed / 100})
        write_e2e(LORA, seed, 0.6, scores={"slot_error_rate": 0.02 + seed / 100})
    assert cell(LORA, "slot_error_rate")["verdict"] == "better"
    assert cell(LORA, "slot_error_rate")["difference"] == pytest.approx(-8)


def test_seeds_that_do_not_meet_are_not_compared():
    write_e2e(FULL, 0, 0.6)
    write_e2e(LORA, 1, 0.7)
    assert (cell(LORA)["verdict"], cell(LORA)["difference"]) == ("no seed in common", None)


def test_seeds_whose_data_differ_are_not_compared_and_a_row_of_several_data_says_so():
    whole, part = {"train": "w", "validation": "v"}, {"train": "p", "validation": "v"}
    for seed in (0, 1, 2):
        write_glue(MRPC_FULL, seed, [0.8], [0.8], data_fingerprint=part)
        write_glue(MRPC_LORA, seed, [0.8 - seed / 10], [0.8], data_fingerprint=whole if seed else part)
    found = cell(MRPC_LORA, "accuracy", "paper")
    assert (found["difference_n"], found["difference"], found["data"]) == (1, 0, "mixed")
    assert cell(MRPC_FULL, "accuracy", "paper")["data"] == "whole"
    records.record_path(MRPC_LORA, "cpu", 0).unlink()
    found = cell(MRPC_LORA, "accuracy", "paper")
    assert (found["verdict"], found["difference"], found["data"]) == ("other data", None, "whole")


def test_runs_of_another_base_are_not_compared_though_it_has_the_same_name():
    for name, bleu in ((FULL, 0.6), (LORA, 0.7)):
        for seed in (0, 1):
            write_e2e(name, seed, bleu, base_fingerprint="damaged" if (name, seed) == (LORA, 1) else "released")
    found = cell(LORA)
    assert (found["difference_n"], found["data"], cell(FULL)["data"]) == (1, "mixed", None)
    records.record_path(LORA, "cpu", 0).unlink()
    assert (cell(LORA)["verdict"], cell(LORA)["difference"]) == ("other base", None)


def test_a_row_has_short_digests_of_its_base_and_rows():
    splits = {"train": "0123456789abcdef", "dev": "fedcba9876543210"}
    write_e2e(LORA, 0, 0.6, base_fingerprint="a" * 64, data_fingerprint=splits)
    assert cell(LORA)["origin"] == "base=aaaaaaaa dev=fedcba98 train=01234567"


def test_code_that_no_commit_has_is_counted_in_any_sitting_of_a_run():
    write_e2e(LORA, 0, 0.6, git_dirty=False, machines=[{"git_dirty": True}, {"git_dirty": False}])
    write_e2e(LORA, 1, 0.6, git_dirty=False)
    assert cell(LORA)["uncommitted"] == 1


def test_runs_on_fewer_rows_are_not_compared_with_runs_on_all():
    write_glue("table2/minilm/sst2/full", 0, [0.9], [0.9])
    write_glue("table6/minilm/sst2/query-r1", 0, [0.8], [0.8])
    assert cell("table6/minilm/sst2/query-r1", "accuracy", "paper")["verdict"] == "no reference"


def test_a_table_without_full_fine_tuning_is_compared_with_the_same_task_of_another():
    write_glue(MRPC_FULL, 0, [0.8], [0.8])
    found = summary.cells([replace(find(MRPC_LORA), name="table99/minilm/mrpc/lora-r8")])
    assert set(found.reference.dropna()) <= {MRPC_FULL}
    reference = summary._reference(replace(find(MRPC_LORA), name="table99/x"), lambda e: e.name == MRPC_FULL)
    assert reference.name == MRPC_FULL


def test_an_experiment_that_names_its_reference_is_measured_against_that():
    write_e2e("pitfalls/gpt2-mini/correct", 0, 0.60)
    write_e2e("pitfalls/gpt2-mini/prompt-loss", 0, 0.55)
    found = cell("pitfalls/gpt2-mini/prompt-loss")
    assert (found["reference"], round(found["difference"], 6)) == ("pitfalls/gpt2-mini/correct", -5)
    assert cell("pitfalls/gpt2-mini/correct")["verdict"] == "reference"


def test_lora_that_others_are_measured_against_is_itself_measured_against_full_fine_tuning():
    over_time = next(e for e in EXPERIMENTS.values() if (e.table, e.scale) == ("rank-over-time", "cpu") and e.against)
    assert find(over_time.against).table != over_time.table
    write_e2e(FULL, 0, 0.60)
    write_e2e(over_time.against, 0, 0.59)
    write_e2e(over_time.name, 0, 0.58)
    assert cell(over_time.against)["reference"] == FULL
    assert cell(over_time.name)["reference"] == over_time.against
    assert f"difference to {over_time.against} at the same" in as_text(
        table(select("rank-over-time", "cpu")), "", "cpu"
    )


# the paper's numbers


def test_the_papers_number_stands_beside_ours_and_is_no_part_of_a_difference():
    write_e2e("table3/gpt2-medium/lora-r4", 0, 0.687)
    found = cell("table3/gpt2-medium/lora-r4", rule="best-epoch")
    assert (found["paper"], found["paper_over_full"], found["paper_row"]) == ("70.4 ±0.1", "+2.2", "GPT-2 M LoRA 0.35M")
    assert (found["verdict"], found["difference"]) == ("no reference", None)


def test_at_a_smaller_scale_the_paper_row_is_that_of_the_work_the_experiment_stands_for():
    assert cell(LORA)["paper_row"] == "GPT-2 M LoRA 0.35M"  # gpt2-mini stands for gpt2-medium
    assert cell("table3/gpt2/lora-r4", rule="best-epoch")["paper_row"] is None


def test_the_held_out_figure_and_other_protocols_have_no_number_of_the_papers():
    write_glue(MRPC_LORA, 0, [0.9], [0.9])
    assert cell(MRPC_LORA, "accuracy", "paper")["paper"] == "89.7 ±0.7"
    assert cell(MRPC_LORA, "accuracy", "held-out")["paper"] is None
    assert cell(MRPC_LORA, "f1", "paper")["paper"] is None
    write_e2e(LORA, 0, 0.6)
    assert cell(LORA, "course_BLEU")["paper"] is None
    assert cell(LORA, "course_BLEU")["value"] == pytest.approx(58.0)  # it counts to 100 already


def test_table_6_has_gpt3s_cell_beside_the_same_matrices_and_rank():
    found = paper_value(find("table6/roberta-base/mnli/query-value-r8"), "accuracy")
    assert (found.row, str(found)) == ("GPT-3 175B LoRA Wq+Wv r=8", "91.6 ±0.1")
    assert paper_value(find("table6/roberta-base/mnli/mlp-r8"), "accuracy") is None
    assert paper_value(find("table5/roberta-base/mnli/query-key-r4"), "accuracy").value == "91.3"


@pytest.mark.parametrize(
    ("name", "metric", "row", "number"),
    [
        ("table13/gpt2-medium/dart/lora-r4", "BLEU", "GPT-2 M LoRA 0.35M", "47.1 ±0.2"),
        ("table13/gpt2-large/dart/adapter-l-23M", "TER", "GPT-2 L Adapter^L 23M", "45"),
        ("table14/gpt2-medium/webnlg/prelayer", "BLEU unseen", "GPT-2 M Prefix 0.35M", "45.6"),
        ("table14/gpt2-medium/webnlg/top2", "METEOR seen", "GPT-2 M FT^Top2 24M", "38"),
        ("table16/minilm/mnli/1000/prelayer", "accuracy", "GPT-3 175B PrefixLayer", "82.5 ±0.3"),
        ("table16/roberta-base/mnli/10000/full", "accuracy", "GPT-3 175B Fine-Tune", "88.9 ±0.3"),
    ],
)
def test_tables_13_14_and_16_have_the_papers_cell_times_100_where_it_prints_fractions(name, metric, row, number):
    found = paper_value(find(name), metric)
    assert (found.row, str(found)) == (row, number)


def test_8000_rows_of_mnli_are_no_cell_of_the_paper():
    assert paper_value(find("table16/minilm/mnli/8000/full"), "accuracy") is None


def test_every_number_of_paper_csv_is_in_the_reference_and_the_other_way_round(shared_data):
    """Cell by cell: the multiset of (value, spread) of every table; METEOR and ROUGE-L of table 18 are times 100."""
    folder = shared_data.parent / "reference" / "paper"
    if not folder.is_dir():
        pytest.skip(f"needs the transcribed tables of the paper in {folder}")
    columns = {  # file -> {column of values: column of spreads}
        "table1_latency_ms": {"latency_ms": "std"},
        "table2_glue": {task: f"{task}_std" for task in GLUE} | {"Avg_reported": ""},
        "table3_e2e": {metric: f"{metric}_std" for metric in ("BLEU", "NIST", "MET", "ROUGE-L", "CIDEr")},
        "table4_gpt3": {"WikiSQL_logical_form_val_acc": "WikiSQL_fluct", "MNLI-m_val_acc": "MNLI_fluct",
                        "SAMSum_R1": "R1_fluct", "SAMSum_R2": "R2_fluct", "SAMSum_RL": "RL_fluct"},
        "table5_weight_types": {"WikiSQL_val_acc": "WikiSQL_std", "MNLI_val_acc": "MNLI_std"},
        "table6_rank": {"val_acc": "std"},
        "table8_fewshot": {"MNLI-m_val_acc": "", "RTE_val_acc": ""},
        "table13_dart": {"BLEU": "BLEU_std", "MET": "", "TER": ""},
        "table14_webnlg": {f"{m}_{s}": f"BLEU_{s}_std" * (m == "BLEU") for m in ("BLEU", "MET", "TER") for s in "USA"},
        "table15_gpt3_detailed": {"WikiSQL": "", "MNLI-m": ""},
        "table18_gpt2_e2e_rank": dict.fromkeys(("val_loss", "BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr"), ""),
    }  # fmt: skip
    ours = pd.read_csv(files.DATA / "paper.csv", dtype=str, keep_default_na=False)
    for file, pairs in columns.items():
        with open(folder / f"{file}.csv", encoding="utf-8", newline="") as lines:
            reference = list(csv.DictReader(lines))
        times_100 = ("METEOR", "ROUGE_L") if file.startswith("table18") else ()
        expected = [
            (f"{100 * float(row[value]):.2f}" if value in times_100 else row[value], row[spread] if spread else "")
            for row in reference
            for value, spread in pairs.items()
            if row[value]
        ]
        found = ours[ours.table == file.split("_")[0]]
        assert sorted(zip(found.value, found.spread, strict=True)) == sorted(expected), file
    assert set(ours.version) == {"arXiv v2", "ICLR 2022"}


# rounding, and what is missing


def test_numbers_are_rounded_in_one_place():
    assert printed("BLEU", 66.666) == "66.67"
    assert printed("NIST", 8.59234) == "8.5923"
    assert printed("BLEU", 0.3, "+") == "+0.30"
    assert printed("BLEU", -0.001) == "0.00"
    assert printed("BLEU", None) == printed("BLEU", float("nan")) == ""


def numbers(text):
    return set(re.findall(r"[+-]?\d+\.\d+", text))


def test_a_number_reads_the_same_in_summary_text_markdown_and_csv():
    for seed, (full, lora) in enumerate(((0.60123, 0.61456), (0.60789, 0.60001))):
        write_e2e(FULL, seed, full)
        write_e2e(LORA, seed, lora)
    cells = summary.cells(select("table3", "cpu"))
    (part,) = parts(wide(cells), "table3").values()
    everything = summary.as_csv(cells)
    text, page, rows = as_text(wide(cells), "table3", "cpu"), as_markdown(part, "table3", "cpu"), as_csv(part)
    for shown in ("60.73", "±1.03", "+0.27"):  # (61.456 + 60.001) / 2, its spread, its distance from 60.456
        assert all(shown in form for form in (text, page, rows))
        assert shown.removeprefix("±") in everything
    assert len(numbers(rows)) > 20
    assert numbers(rows) <= numbers(everything)


def test_counts_are_whole_numbers():
    write("learning-rate/gpt2-mini/lora/0.004", 0, dev_loss=1.5)
    (part,) = parts(table(select("learning-rate", "cpu", ["gpt2-mini/lora/0.004"])), "learning-rate").values()
    (row,) = csv.DictReader(as_csv(part).splitlines())
    assert (row["train_rows"], row["left_out"], row["trainable"], row["n"]) == ("8000", "0", "1000", "1")
    assert "8,000 rows" in as_markdown(part, "learning-rate", "cpu")


def test_a_missing_row_says_so_with_the_command_that_fills_it():
    write_e2e(FULL, 0, 0.6)
    command = f"python code/reproduce.py run {LORA} --seed 0"
    assert (cell(LORA)["verdict"], cell(LORA)["command"], cell(LORA)["n"]) == ("not run", command, 0)
    frame = table(select("table3", "cpu"))
    assert f"missing: {LORA}  ->  {command}" in as_text(frame, "table3", "cpu")
    page = as_markdown(frame, "table3", "cpu")
    assert f"Rows that are not run: {len(frame) - 1} of {len(frame)}." in page
    assert f"run {FULL} --seed" not in page


@pytest.mark.parametrize("name", [MRPC_LORA, "table2/roberta-large/mrpc/lora-r8/official-code"])
def test_the_command_of_a_row_of_several_seeds_makes_exactly_that_row_with_all_of_them(name):
    for seed in (0, 2):
        write_glue(name, seed, [0.8], [0.8])
    words = cell(name, "accuracy", "paper")["command"].split()
    arguments = reproduce._parser().parse_args(words[2:])
    chosen = select(arguments.table, arguments.scale, arguments.rows, arguments.variant)
    assert ([e.name for e in chosen], arguments.seeds) == ([name], [0, 2])


# tables


def test_e2e_and_glue_never_share_a_table_and_two_protocols_never_a_sheet():
    write_e2e("pitfalls/gpt2-mini/correct", 0, 0.6)
    write_glue("pitfalls/minilm/mrpc/correct", 0, [0.8], [0.8])
    found = parts(table(select("pitfalls", "cpu")), "pitfalls")
    assert list(found) == ["pitfalls-e2e", "pitfalls-glue"]
    columns = [set(sheet.columns) for _, sheet in sheets(found["pitfalls-e2e"])]
    course = HEADS["course_BLEU"]
    assert any("BLEU" in sheet for sheet in columns) and any(course in sheet for sheet in columns)
    assert not any({"BLEU", course} <= sheet or "held-out" in sheet for sheet in columns)


@pytest.mark.parametrize(("best", "rules"), [(0.8, ["paper's rule and held-out"]), (0.9, ["paper's rule", "held-out"])])
def test_ranks_and_matrices_make_a_grid_for_each_task_and_rule_and_one_where_the_rules_agree(best, rules):
    for rank, accuracy in ((1, 0.7), (8, 0.8)):
        held_out = {"honest_scores": {"accuracy": accuracy}}
        write_glue(f"table6/minilm/sst2/query-value-r{rank}", 0, [accuracy + best - 0.8], [accuracy], **held_out)
    (part,) = parts(table(select("table6", "cpu")), "table6").values()
    grids = {title: sheet for title, sheet in sheets(part) if "by rank" in title}
    assert list(grids) == [f"SST-2, accuracy, {rule}, minilm: matrices by rank" for rule in rules]
    assert list(grids.values())[-1].to_numpy().tolist() == [["query, value", "70.00", "80.00"]]
    assert all(list(sheet.columns) == ["", "r=1", "r=8"] for sheet in grids.values())


@pytest.mark.parametrize("scale", ["quick", "cpu", "paper"])
def test_no_two_experiments_share_a_cell_of_a_grid(scale):
    """Two bases with one row and one learning rate did, and the later number replaced the earlier."""
    cells = {}
    for experiment in (e for e in EXPERIMENTS.values() if e.scale == scale):
        settings = experiment.settings
        row = {"experiment": experiment.name, "table": experiment.table, "task": settings.task, "metric": "BLEU"}
        row |= {"train_rows": settings.train_rows or 0}
        cells.setdefault((experiment.table, experiment.variant, *_place(row)), []).append(experiment.name)
    assert [names for names in cells.values() if len(names) > 1] == []


def test_a_row_that_starts_from_mnli_says_that_its_reference_does():
    for task, full in (("rte", "full-from-mnli"), ("mrpc", "full")):
        for row in (full, "lora-r8"):
            for seed, accuracy in enumerate((0.8, 0.81)):
                write_glue(f"table2/minilm/{task}/{row}", seed, [accuracy], [accuracy])
    verdicts = table(select("table2", "cpu", ["rte", "mrpc"])).set_index("experiment")["verdict"]
    assert verdicts["table2/minilm/rte/lora-r8"].endswith("equivalent (n=2, both from MNLI)")
    assert verdicts["table2/minilm/mrpc/lora-r8"].endswith("equivalent (n=2)")


def test_a_table_says_scale_statistic_protocol_margin_and_subset():
    write_glue(MRPC_FULL, 0, [0.8], [0.8], subset={"train": True})
    write_glue(MRPC_LORA, 0, [0.8], [0.8])
    text = as_text(table(select("table2", "cpu")), "table2", "cpu")
    for said in ("Scale cpu: real data and small real models", "medians over n seeds", "Two rules, never mixed",
                 "equivalent if the 90% interval (Student's t) lies within ±1 point; else better",
                 "At least one split of MRPC is a subset", "at its own scale: not the same work"):  # fmt: skip
        assert said in text
    for name in (FULL, LORA):
        write_e2e(name, 0, 0.6)
    text = as_text(table(select("table3", "cpu")), "table3", "cpu")
    assert "Text protocol lora; scored: the last epoch" in text
    assert "lies within ±1 point, 0.1 NIST, 0.05 CIDEr" in text


def test_runs_that_answer_always_the_same_are_counted_beside_their_score():
    write_glue(MRPC_LORA, 0, [0.8], [0.8])
    alarm = {"accuracy": 0.68, "f1": 0.8, "precision": 0.7, "recall": 1.0, "alarm": "408 of 408 are equivalent"}
    write_glue(MRPC_LORA, 1, [0.8], [0.8], scores=alarm)
    row = table(select("table2", "cpu")).set_index("experiment").loc[MRPC_LORA]
    assert row["alarms"] == 1
    assert "alarms: runs that give nearly always the same answer" in as_text(
        table(select("table2", "cpu")), "table2", "cpu"
    )


# files


def test_the_files_are_the_same_bytes_whatever_the_order_in_which_runs_ended(tmp_path, monkeypatch):
    found = []
    for folder, seeds in (("a", (0, 1, 2)), ("b", (2, 0, 1))):
        monkeypatch.setattr(files, "RESULTS", tmp_path / folder)
        for seed in seeds:
            write_e2e(FULL, seed, 0.60 + seed / 100)
            write_glue(MRPC_LORA, seed, [0.8 + seed / 100], [0.8])
        found.append(result_files.result_texts())
    assert found[0] == found[1]
    assert {"summary.csv", "tables/table3-cpu.md", "tables/table2-cpu.csv", "figures/table3-parameters-cpu.csv"} <= set(
        found[0]
    )


def test_what_is_run_at_quick_scale_only_is_in_no_file():
    write_e2e("table3/gpt2-mini/e2e-builtin/lora-r4", 0, 0.6)
    found = result_files.result_texts()
    assert set(found) == {"summary.csv", "tables/README.md"}
    assert "Nothing is recorded yet" in found["tables/README.md"] and "lora-r4" not in found["summary.csv"]


def test_records_of_experiments_that_are_no_longer_declared_are_named():
    record = write_e2e(LORA, 0, 0.6)
    records.write_record(record | {"name": "table3/gpt2-mini/lora-r5"})
    page = result_files.result_texts()["tables/README.md"]
    assert "1 of " in page and "in no table: table3/gpt2-mini/lora-r5." in page


def test_notes_name_full_fine_tuning_as_one_reference_whatever_it_starts_from():
    rows = {"mrpc": MRPC_FULL, "rte": "table2/minilm/rte/full-from-mnli"}
    for task, full in rows.items():
        for name in (full, f"table2/minilm/{task}/lora-r8"):
            write_glue(name, 0, [0.8], [0.8])
    text = as_text(table(select("table2", "cpu", ["mrpc", "rte"])), "table2", "cpu")
    assert "the mean difference to full fine-tuning from the same start at the same seeds" in text


def test_a_page_gets_the_main_tables_with_the_command_of_every_row():
    write_e2e(FULL, 0, 0.6)
    write_glue(MRPC_LORA, 0, [0.8], [0.7])
    text = "# LoRA\n<!-- results -->\nold\n<!-- /results -->\nthe end\n"
    page = pages.with_block("README.md", text, "results", pages.results_block())
    assert page.startswith("# LoRA\n<!-- results -->\n\n**Table 3: E2E, scale `cpu`**\n\n| experiment |")
    assert page.endswith("\n\n<!-- /results -->\nthe end\n") and "old" not in page
    for name in (FULL, MRPC_LORA):
        assert f"python code/reproduce.py run {name} --seed 0" in page
    assert f"{len(select('table3', 'cpu')) - 1} more rows are not run yet." in page
    assert pages.with_block("README.md", page, "results", pages.results_block()) == page


@pytest.mark.parametrize(("text", "lack"), [("# LoRA\n", "no beginning"), ("<!-- results -->\n", "no end")])
def test_a_page_without_the_markers_is_refused_by_its_name(text, lack):
    with pytest.raises(ValueError, match=f"expected the lines <!-- results -->.* in a.md, .*found {lack}"):
        pages.with_block("a.md", text, "results", "new")


def test_summary_and_check_need_neither_torch_nor_transformers(results):
    write_e2e(FULL, 0, 0.6)
    code = (
        "import sys; from pathlib import Path\n"
        f"sys.path.insert(0, {str(files.ROOT / 'code')!r})\n"
        f"import files; files.RESULTS = Path({str(results)!r})\n"
        "from publish import check, result_files\n"
        "result_files.write_results()\n"
        "assert (files.RESULTS / 'tables/table3-cpu.md').exists()\n"
        "assert all('.md' in line for line in check.differences())\n"
        "print({'torch', 'transformers'} & sys.modules.keys())"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_every_declared_experiment_has_quantities_each_once():
    for experiment in EXPERIMENTS.values():
        asked = quantities(experiment.settings)
        assert asked[0].rule != "cost"
        keys = [(q.metric, q.protocol, q.rule) for q in asked]
        assert len(keys) == len(set(keys))
