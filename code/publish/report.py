"""Report and poster: one file of facts that they may state, their compilation, and whether they are stale.

    facts_text(read_summary())    # report/facts.json: every number, table, verdict and picture they use
    compile_document("report")    # report/report.pdf

The sources (`report/*.typ`, `poster/poster.typ`) hold sentences and layout and no result: numbers come from the facts,
pictures from `results/figures`. Only Typst's own fonts are used and its version is pinned, so that every machine makes
the same bytes.
"""

from __future__ import annotations

import json
from bisect import bisect
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import typst

import files
from analysis import differences
from analysis.claims import CLAIMS, JUDGED_BASES, JUDGED_SCALES, LEADING, WEAK, base_of, judged
from analysis.comparisons import FAR, LOSS_MARGIN, MISSING
from analysis.paper_values import FIRST_VERSION, as_printed, starred
from analysis.quantities import MARGIN, printed
from analysis.seed_statistics import DIFFERENCE_LEVEL, SCORE_LEVEL
from analysis.summary import read_summary
from experiments.catalogue import find
from experiments.smollm2 import BROKEN
from files import read_table, results_are_own, write_atomically
from publish.figure_data import KINDS
from publish.labels import label
from publish.pages import cost_rows
from publish.report_tables import NOTHING, command, coverage, report_rows, report_table
from tasks.catalogue import TASKS

FACTS = "report/facts.json"
SHOWN = ("table3", "table2", "table5", "table6-mnli", "table6-sst2", "pitfalls", "rank-over-time", "variants")
BYTES = 4  # of a float32
FITS = {  # document -> pages it may have, sizes of its text in points
    "report": (8, (8.25, 8.5, 8.75, 9, 9.25, 9.5, 9.75, 10)), "poster": (1, range(42, 65)),
}  # fmt: skip
STORED = {  # row of the storage argument -> full fine-tuning, LoRA
    "GPT-2 medium on E2E": ("table3/gpt2-medium/full", "table3/gpt2-medium/lora-r4"),
    "RoBERTa-base on MRPC": ("table2/roberta-base/mrpc/full", "table2/roberta-base/mrpc/lora-r8"),
    "DeBERTa-XXL on MRPC": ("table2/deberta-v2-xxlarge/mrpc/full", "table2/deberta-v2-xxlarge/mrpc/lora-r8"),
}
SETTINGS = {  # name in the documents -> experiment
    "e2e": "table3/gpt2-medium/lora-r4", "e2e_full": "table3/gpt2-medium/full",
    "real": "table3/smollm2-135m/lora-r4", "real_r8": "table3/smollm2-135m/lora-r8",
    "real_full": "table3/smollm2-135m/full",
    "glue": "table2/roberta-base/mrpc/lora-r8", "glue_cpu": "table2/minilm/mrpc/lora-r8",
    "restricted": "table2/roberta-large/mrpc/lora-r8-restricted",
    "grid": "table6/minilm/sst2/query-value-r8", "search": "learning-rate/gpt2-mini/lora/0.008",
    "pitfalls": "pitfalls/gpt2-mini/correct",
}  # fmt: skip


def facts(summary: pd.DataFrame) -> dict[str, Any]:
    """All numbers, tables, verdicts and pictures of the documents."""
    findings, rows = judged(summary), report_rows(summary)
    return {
        "claims": {
            claim.name: {"source": claim.source, "says": claim.says}
            | {s: asdict(findings[claim.name, s]) | {"base": base_of(claim, s), "command": command(claim.table, s)}
               for s in JUDGED_SCALES}
            for claim in CLAIMS
        },
        "judged": sum(finding.verdict != MISSING for finding in findings.values()),
        "tables": {table: {s: report_table(rows, table, s) for s in JUDGED_SCALES} for table in SHOWN},
        "real_parameters": _parameters(summary, SETTINGS["real_full"]),
        "coverage": coverage(rows, JUDGED_SCALES),
        "runs": {scale: _runs(summary, scale) for scale in JUDGED_SCALES},
        "searches": _runs(summary[summary["table"] == "learning-rate"], "cpu"),
        "uncommitted": summary[~summary["uncommitted"].isin(("", "0"))]["experiment"].nunique(),
        "broken": _broken(),
        "weak_slots": {row: _score(summary, f"table3/{WEAK}/{name}", "slot_error_rate")
                       for row, name in (("lora", "lora-r4"), ("full", "full"))},
        "paper": {"table3": _paper("table3", "GPT-2 M"), "table2": _paper("table2", "RoBERTa-base")},
        "independent": read_table("independent_e2e.csv"),
        "differences": [row for row in differences.rows() if not row["effect"].startswith("none")],
        "earlier": read_table("earlier_reproductions.csv"),
        "storage": _storage(),
        "parameters": {
            row["model"]: int(row["total"]) for row in read_table("paper_costs.csv") if row["method"] == "full"
        },
        "costs": _costs(),
        "figures": {f"{table}-{name}-{scale}": _figure(table, name, scale)
                    for name, kind in KINDS.items() for table in kind.tables for scale in JUDGED_SCALES},
        "settings": {name: _settings(experiment) for name, experiment in SETTINGS.items()},
        "tasks": {name: {"train_rows": f"{task.train_rows:,}", "test_inputs": f"{task.test_inputs:,}"}
                  for name, task in TASKS.items()},
        "bases": {scale: list(JUDGED_BASES[scale]) for scale in JUDGED_SCALES},
        "gpt2_mini": json.loads((files.DATA / "models/gpt2-mini/pretraining.json").read_text(encoding="utf-8")),
        "statistics": {"margin": f"{MARGIN:g}", "far": f"{FAR:g}", "loss_margin": f"{LOSS_MARGIN:g}",
                       **{f"{metric.lower()}_margin": f"{TASKS['e2e'].metrics[metric].margin:g}"
                          for metric in ("NIST", "CIDEr")},
                       "score_level": f"{SCORE_LEVEL:.0%}", "difference_level": f"{DIFFERENCE_LEVEL:.0%}"},
    }  # fmt: skip


def _runs(summary: pd.DataFrame, scale: str) -> int:
    experiments = summary[summary["scale"] == scale].drop_duplicates("experiment")
    return int(experiments["n"].astype(int).sum())


def _parameters(summary: pd.DataFrame, name: str) -> int:
    """The trained parameters of a row, from its records; 0 if it is not run."""
    lines = summary[(summary["experiment"] == name) & (summary["n"] != "0")]
    return int(lines["trainable"].iloc[0]) if len(lines) else 0


def _score(summary: pd.DataFrame, name: str, metric: str) -> str:
    """A row's number as the summary has it; `NOTHING` if it is not run."""
    lines = summary[(summary["experiment"] == name) & (summary["metric"] == metric) & (summary["n"] != "0")]
    return printed(metric, float(lines["value"].iloc[0])) if len(lines) else NOTHING


def _broken() -> list[dict[str, str]]:
    """The rows whose rate broke a training at full length: {"label", "broken", "step", "steps", "rate"}, as text."""
    rows = {row: find(f"table3/{LEADING}/{row}") for row in BROKEN}
    return [
        {"label": label(row), "broken": f"{rate:g}", "step": f"{step:,}",
         "steps": f"{row.settings.train_rows // row.settings.batch_size:,}", "rate": f"{row.settings.learning_rate:g}"}
        for name, row in rows.items() for rate, step in [BROKEN[name]]
    ]  # fmt: skip


def _settings(name: str) -> dict[str, str]:
    settings = asdict(find(name).settings)
    return {key: f"{value:,}" if isinstance(value, int) else differences.text(value) for key, value in settings.items()}


def _paper(table: str, model: str) -> dict[str, Any]:
    """The paper's rows of a model as it prints them: {"columns": metrics, "rows": [[method, trainable, cells]]}."""
    key = (table, model, FIRST_VERSION)
    lines = [line for line in read_table("paper.csv") if (line["table"], line["model"], line["version"]) == key]
    metrics = list(dict.fromkeys(line["metric"] for line in lines))
    cells_by_row: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        cell = as_printed(line["value"], line["spread"], line["note"])
        cells_by_row.setdefault((starred(line), line["trainable"]), {})[line["metric"]] = cell
    rows = [[*row, *(cells.get(metric, NOTHING) for metric in metrics)] for row, cells in cells_by_row.items()]
    return {"columns": ["", "trained", *(metric.split(" ")[0].replace("_", "-") for metric in metrics)], "rows": rows}


def _storage() -> list[dict[str, str]]:
    """Bytes of one task in float32, as a whole model and as an adapter with its head, from parameter counts."""
    costs = {row["experiment"]: row for row in read_table("paper_costs.csv")}
    rows = []
    for name, (full, lora) in STORED.items():
        whole, adapter = int(costs[full]["total"]) * BYTES, int(costs[lora]["trainable"]) * BYTES
        rows.append({
            "name": name, "whole": _megabytes(whole), "adapter": _megabytes(adapter),
            "ratio": f"{whole / adapter:,.0f}", "hundred": _megabytes(100 * whole),
            "hundred_adapters": _megabytes(whole + 100 * adapter),
        })  # fmt: skip
    return rows


def _megabytes(size: int) -> str:
    megabytes = size / 10**6
    return f"{megabytes / 1000:,.1f} GB" if megabytes >= 1000 else f"{megabytes:,.{0 if megabytes >= 100 else 1}f} MB"


def _costs() -> dict[str, Any]:
    rows = cost_rows()
    return {"rows": rows, "hours": f"{sum(int(row[3].replace(',', '')) for row in rows):,}"}


def _figure(table: str, kind: str, scale: str) -> dict[str, str]:
    """The picture's path below the project's folder, or the command that makes it."""
    path = files.RESULTS / "figures" / f"{table}-{kind}-{scale}.pdf"
    if not path.exists():
        return {"file": "", "command": command(table, scale)}
    return {"file": f"/{path.relative_to(files.ROOT).as_posix()}"}


def facts_text(summary: pd.DataFrame) -> str:
    """`facts` as the text of report/facts.json."""
    return json.dumps(facts(summary), indent=1, ensure_ascii=False) + "\n"


def compile_document(document: str, **options: Any) -> bytes | list[bytes]:
    """The document as PDF, or its pages with `format="svg"`, in the largest text that keeps to the pages in FITS.

    Raises TypstError where a sentence contradicts its claim.
    """
    most_pages, sizes = FITS[document]

    def compiled(points: float, **options: Any) -> bytes | list[bytes]:
        return typst.compile(
            str(files.ROOT / document / f"{document}.typ"), root=str(files.ROOT), ignore_system_fonts=True,
            sys_inputs={"points": str(points)}, **options,
        )  # fmt: skip

    def overflows(points: float) -> bool:
        pages = compiled(points, format="svg")
        return isinstance(pages, list) and len(pages) > most_pages

    first_too_large = bisect(sizes, False, key=overflows)
    return compiled(sizes[max(first_too_large - 1, 0)], **options)


def method_figure() -> bytes:
    """The figure of the method alone, as SVG, for the README."""
    return typst.compile(
        str(files.ROOT / "report" / "method.typ"), root=str(files.ROOT), format="svg", ignore_system_fonts=True
    )


MAKERS = {f"{name}/{name}.pdf": partial(compile_document, name) for name in FITS} | {"report/method.svg": method_figure}


def write_documents() -> list[Path]:
    """Write the facts, compile report, poster and the picture of the method; the paths of the two PDFs.

    Takes seconds, without TeX or a model.
    Raises FileNotFoundError without a summary, RuntimeError where a sentence contradicts it, ValueError where results
    are elsewhere than the documents.
    """
    if not results_are_own():
        raise ValueError(f"expected results in {files.ROOT}, found {files.RESULTS}: unset LORA_RESULTS_DIR")
    write_atomically(files.ROOT / FACTS, facts_text(read_summary()))
    for name, make in MAKERS.items():
        write_atomically(files.ROOT / name, make())
    return [files.ROOT / name for name in MAKERS if name.endswith(".pdf")]


def stale() -> list[str]:
    """A sentence for each document that would be made otherwise now."""
    path = files.ROOT / FACTS
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        expected = facts_text(read_summary())
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    lines = [] if text == expected else [f"{FACTS} is not what the summary and declarations give"]
    for name, make in MAKERS.items():
        document = files.ROOT / name
        try:
            if not document.exists() or document.read_bytes() != make():
                lines.append(f"{name} is not made from its sources: `make documents` makes it")
        except RuntimeError as error:
            lines.append(f"{name} cannot be made: {error}")
    return lines
