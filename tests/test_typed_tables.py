"""The tables of `data/` that were typed from the paper, cell by cell against the transcription they were typed from."""

from __future__ import annotations

import csv
import re

import pytest

from experiments.glue import GLUE_TASKS
from files import read_table
from tasks.catalogue import TASKS

MODELS = {"RoBERTa-base": "roberta-base", "RoBERTa-large": "roberta-large", "DeBERTa-XXL": "deberta-v2-xxlarge"}
NLG = {"BLEU": "BLEU", "NIST": "NIST", "MET": "METEOR", "ROUGE-L": "ROUGE_L", "CIDEr": "CIDEr"}
ROWS = {
    "LoRA": "lora", "LoRA dagger": "lora-restricted",
    "Adpt^P 3M dagger": "adapter-p-3.0M", "Adpt^P 0.8M dagger": "adapter-p-0.8M",
    "Adpt^H 6M dagger": "adapter-h-6.0M", "Adpt^H 0.8M dagger": "adapter-h-0.8M",
}  # fmt: skip
COLUMNS = {  # ours -> the transcription's
    "epochs": "epochs", "learning_rate": "learning_rate", "weight_decay": "weight_decay",
    "warmup_ratio": "warmup_ratio", "warmup_steps": "warmup_steps", "rank": "lora_r_q_v_or_bottleneck",
    "alpha": "lora_alpha", "head_dropout": "cls_dropout", "max_length": "max_seq_len",
}  # fmt: skip


@pytest.fixture
def transcribed(shared_data):
    folder = shared_data.parent / "reference" / "paper"
    if not folder.is_dir():
        pytest.skip(f"needs the transcribed tables of the paper in {folder}")

    def read(name):
        with open(folder / f"{name}.csv", encoding="utf-8", newline="") as lines:
            return list(csv.DictReader(lines))

    return read


def number(cell):
    """What the cell begins with, before any remark; None where that is no number."""
    match = re.match(r"[\d.]+(?:e-?\d+)?", cell)
    return float(match[0]) if match else None


def test_every_cell_of_tables_2_and_3_is_at_its_row_and_metric(transcribed):
    expected = {}
    for row in transcribed("table2_glue"):
        version = next(v for v in ("arXiv v2", "ICLR 2022") if v.split()[0] in row["paper_version"])
        method = row["method"] + "†" * (row["restricted_setup_dagger"] == "yes")
        line = ("table2", row["model"], method, row["trainable_params_reported"], version)
        for task in (TASKS[name] for name in GLUE_TASKS):
            expected[(*line, f"{task.title} {task.main_metric}")] = (row[task.title], row[f"{task.title}_std"])
        expected[(*line, "average")] = (row["Avg_reported"], "")
    for row in transcribed("table3_e2e"):
        line = ("table3", row["model"], row["method"], row["trainable_params_reported"], "arXiv v2")
        expected |= {(*line, ours): (row[theirs], row[f"{theirs}_std"]) for theirs, ours in NLG.items()}
    expected = {key: tuple(map(number, cell)) for key, cell in expected.items() if cell[0]}
    ours = [row for row in read_table("paper.csv") if row["table"] in ("table2", "table3")]
    keys = ("table", "model", "method", "trainable", "version", "metric")
    cells = {tuple(row[key] for key in keys): (number(row["value"]), number(row["spread"])) for row in ours}
    assert len(cells) == len(ours) == 195
    assert cells == expected


def test_every_setting_of_the_glue_rows_is_that_of_the_paper_or_the_scripts(transcribed):
    expected = {}
    for row in transcribed("hyperparameters"):
        version = "paper" if "v2" in row["source_type"] else "official-code"
        if row["model"] in MODELS and row["method"] in ROWS and "ICLR" not in row["source_type"]:
            task = next(name for name in GLUE_TASKS if TASKS[name].title == row["task"])
            batch = row["batch_size" if version == "paper" else "global_batch_if_run_as_is"]
            expected[MODELS[row["model"]], ROWS[row["method"]], task, version] = (
                number(batch), *(number(row[column]) for column in COLUMNS.values()),
                row["init_from"] != "pre-trained model",
            )  # fmt: skip
    ours = read_table("glue_hyperparameters.csv")
    settings = {
        (row["model"], row["row"], row["task"], row["variant"]): (
            number(row["batch_size"]), *(number(row[column]) for column in COLUMNS), row["mnli_start"] == "yes",
        )
        for row in ours
    }  # fmt: skip
    assert len(settings) == len(ours) == 88
    assert settings == expected
