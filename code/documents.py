"""Report and poster: what they may say, as one file of facts; how they are compiled; whether they have gone stale.

    facts_text(read_summary())    # report/facts.json: every number, table, verdict and picture they use
    compile_document("report")    # report/report.pdf

The sources (`report/*.typ`, `poster/poster.typ`) hold sentences and layout and no result: numbers come from the facts,
pictures from `results/figures`. Typst's own fonts are used and no other, and its version is pinned, for the same bytes
on every machine.
"""

from __future__ import annotations

import json
from bisect import bisect
from dataclasses import asdict
from functools import partial
from typing import Any

import pandas as pd
import typst

import differences
import document_tables
import paths
from claims import BASES, CLAIMS, FAR, LOSS_MARGIN, MISSING, SAVING, SCALES, judged, read_summary
from data_tables import read_table
from document_tables import command
from experiments import find, resolve
from figure_data import KINDS
from paper_values import FIRST_VERSION, as_printed, starred
from quantities import MARGIN
from result_tables import TITLES, with_block
from statistics_seeds import DIFFERENCE_LEVEL, SCORE_LEVEL
from tasks import TASKS

FACTS = "report/facts.json"
BENCHMARKS = {  # of benchmark.py, in the order of the README
    "step": "LoRA step of GPT-2 small", "decode": "beam search, 64 inputs", "metrics": "E2E metrics, test set",
    "glue": "GLUE",
}  # fmt: skip
SHOWN = ("table3", "table2", "table5", "table6-mnli", "table6-sst2", "pitfalls", "rank-over-time", "variants")
SEEDS = {"table3": 3, "table2": 5}  # as the paper has them
IN_SHORT = (  # of the claims
    "few-parameters", "e2e-matches", "e2e-top2", "e2e-rank", "glue-matches", "mlp-first", "higher-rate",
)  # fmt: skip
BYTES = 4  # of a float32
FITS = {  # document -> pages it may have, sizes of its text in points
    "report": (8, (8.5, 8.75, 9, 9.25, 9.5, 9.75, 10)), "poster": (1, range(16, 37)),
}  # fmt: skip
STORED = {  # row of the storage argument -> full fine-tuning, LoRA
    "GPT-2 medium on E2E": ("table3/gpt2-medium/full", "table3/gpt2-medium/lora-r4"),
    "RoBERTa-base on MRPC": ("table2/roberta-base/mrpc/full", "table2/roberta-base/mrpc/lora-r8"),
    "DeBERTa-XXL on MRPC": ("table2/deberta-v2-xxlarge/mrpc/full", "table2/deberta-v2-xxlarge/mrpc/lora-r8"),
}
SETTINGS = {"e2e": ("table3/gpt2-medium/lora-r4", "paper"), "e2e_full": ("table3/gpt2-medium/full", "paper"),
            "e2e_cpu": ("table3/gpt2/lora-r4", "cpu"), "e2e_full_cpu": ("table3/gpt2/full", "cpu"),
            "glue_cpu": ("table2/roberta-base/mrpc/lora-r8", "cpu"),
            "grid": ("table6/roberta-base/sst2/query-value-r8", "cpu"),
            "search": ("learning-rate/e2e/lora/0.008", "cpu"),
            "glue": ("table2/roberta-base/mrpc/lora-r8", "paper"),
            "restricted": ("table2/roberta-large/mrpc/lora-r8-restricted", "paper")}  # fmt: skip


def facts(summary: pd.DataFrame) -> dict[str, Any]:
    """Everything the documents say that is not a sentence."""
    found, run = judged(summary), document_tables.by_experiment(summary)
    return {
        "claims": {
            claim.name: {"source": claim.source, "says": claim.says}
            | {scale: asdict(found[claim.name, scale]) | {"command": command(claim.table, scale)} for scale in SCALES}
            for claim in CLAIMS
        },
        "judged": sum(finding.verdict != MISSING for finding in found.values()),
        "tables": {table: {s: document_tables.of(run, table, s) for s in SCALES} for table in SHOWN},
        "coverage": document_tables.coverage(run, TITLES, SCALES),
        "runs": {scale: _runs(summary, scale) for scale in SCALES},
        "paper": {"table3": _paper("table3", "GPT-2 M"), "table2": _paper("table2", "RoBERTa-base")},
        "independent": read_table("independent_e2e.csv"),
        "differences": differences.rows(),
        "storage": _storage(),
        "parameters": {
            row["model"]: int(row["total"]) for row in read_table("paper_costs.csv") if row["method"] == "full"
        },
        "costs": _costs(),
        "figures": {f"{table}-{kind}-{scale}": _figure(table, kind, scale)
                    for kind, of in KINDS.items() for table in of.tables for scale in SCALES},
        "settings": {name: _settings(*of) for name, of in SETTINGS.items()},
        "tasks": {name: {"train_rows": f"{task.train_rows:,}", "test_inputs": f"{task.test_inputs:,}"}
                  for name, task in TASKS.items()},
        "bases": {scale: list(BASES[scale]) for scale in SCALES},
        "gpt2_mini": json.loads((paths.DATA / "models/gpt2-mini/pretraining.json").read_text(encoding="utf-8")),
        "statistics": {"margin": f"{MARGIN:g}", "far": f"{FAR:g}", "loss_margin": f"{LOSS_MARGIN:g}",
                       "saving": f"{SAVING:.0%}", "score_level": f"{SCORE_LEVEL:.0%}",
                       "difference_level": f"{DIFFERENCE_LEVEL:.0%}"},
    }  # fmt: skip


def _runs(summary: pd.DataFrame, scale: str) -> int:
    there = summary[summary["scale"] == scale].drop_duplicates("experiment")
    return int(there["n"].astype(int).sum())


def _settings(name: str, scale: str) -> dict[str, str]:
    of = asdict(resolve(find(name), scale))
    return {key: f"{value:,}" if isinstance(value, int) else differences.text(value) for key, value in of.items()}


def _paper(table: str, model: str) -> dict[str, Any]:
    """The paper's rows of a model as it prints them: {"columns": metrics, "rows": [[method, trainable, cells]]}."""
    of = (table, model, FIRST_VERSION)
    lines = [line for line in read_table("paper.csv") if (line["table"], line["model"], line["version"]) == of]
    metrics = list(dict.fromkeys(line["metric"] for line in lines))
    found: dict[tuple[str, str], dict[str, str]] = {}
    for line in lines:
        cell = as_printed(line["value"], line["spread"], line["note"])
        found.setdefault((starred(line), line["trainable"]), {})[line["metric"]] = cell
    rows = [[*row, *(cells.get(metric, "–") for metric in metrics)] for row, cells in found.items()]
    return {"columns": ["", "trained", *(metric.split(" ")[0].replace("_", "-") for metric in metrics)], "rows": rows}


def _storage() -> list[dict[str, str]]:
    """What one task takes on disk in float32, whole and as an adapter with its head, by count of parameters."""
    costs = {row["experiment"]: row for row in read_table("paper_costs.csv")}
    found = []
    for name, (full, lora) in STORED.items():
        whole, adapter = int(costs[full]["total"]) * BYTES, int(costs[lora]["trainable"]) * BYTES
        found.append({
            "name": name, "whole": _megabytes(whole), "adapter": _megabytes(adapter),
            "ratio": f"{whole / adapter:,.0f}", "hundred": _megabytes(100 * whole),
            "hundred_adapters": _megabytes(whole + 100 * adapter),
        })  # fmt: skip
    return found


def _megabytes(size: int) -> str:
    megabytes = size / 10**6
    return f"{megabytes / 1000:,.1f} GB" if megabytes >= 1000 else f"{megabytes:,.{0 if megabytes >= 100 else 1}f} MB"


def cost_rows() -> list[list[str]]:
    """[table, model, runs with the paper's seeds, A100 hours of all, gigabytes of the largest], by arithmetic."""
    found: dict[tuple[str, str], list[dict[str, str]]] = {}
    for row in read_table("paper_costs.csv"):
        found.setdefault((row["experiment"].split("/")[0], row["model"]), []).append(row)
    return [
        [
            TITLES[table], model, str(len(rows) * SEEDS[table]),
            f"{sum(int(row['minutes']) for row in rows) * SEEDS[table] / 60:,.0f}",
            f"{max(float(row['gigabytes']) for row in rows):.0f}",
        ]
        for (table, model), rows in found.items()
    ]  # fmt: skip


def speed_rows() -> list[list[str]]:
    """[what against what, ratio, processors and repetitions], as `benchmark.py` measured it."""
    found = []
    for name, title in BENCHMARKS.items():
        path = paths.RESULTS / "benchmark" / f"{name}.json"
        if not path.exists():
            found.append([title, "–", f"not yet: `python code/benchmark.py {name}`"])
            continue
        run = json.loads(path.read_text(encoding="utf-8"))
        times = run["repetitions"]
        how = f"{run['threads']} threads, " + (f"up to {times} repetitions" if times > 1 else "1 repetition")
        found += [[f"{title}: {what}", f"{value:.2f}", how] for what, value in run["measured"].items() if "/" in what]
    return found


def _block(heads: dict[str, str], rows: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in (heads.keys(), heads.values(), *rows))


TEXT, NUMBER = "---", "---:"  # how a column is set


def claim_rows() -> list[list[str]]:
    """[claim, source, how it fares at scale `cpu`, evidence, seeds] of those that stand before all tables."""
    found = {name: finding for (name, scale), finding in judged(read_summary()).items() if scale == "cpu"}
    return [
        [claim.says, claim.source, found[claim.name].verdict, found[claim.name].evidence, str(found[claim.name].n)]
        for claim in CLAIMS
        if claim.name in IN_SHORT
    ]


BLOCKS = {  # of the README, between <!-- name --> and <!-- /name -->
    "claims": lambda: _block(
        {"claim": TEXT, "source": TEXT, "here": TEXT, "evidence": TEXT, "n": NUMBER}, claim_rows()
    ),
    "costs": lambda: _block(
        {"table": TEXT, "model": TEXT, "runs": NUMBER, "A100 hours": NUMBER, "GB": NUMBER}, cost_rows()
    ),
    "speed": lambda: _block({"what / against what": TEXT, "ratio": NUMBER, "measured with": TEXT}, speed_rows()),
}


def readme(text: str) -> str:
    """The README with the tables between their markers made anew."""
    for name, block in BLOCKS.items():
        text = with_block(text, name, block())
    return text


def _costs() -> dict[str, Any]:
    rows = cost_rows()
    return {"rows": rows, "hours": f"{sum(int(row[3].replace(',', '')) for row in rows):,}"}


def _figure(table: str, kind: str, scale: str) -> dict[str, str]:
    """Where the picture is below the project's folder; or the command that makes it."""
    path = paths.RESULTS / "figures" / f"{table}-{kind}-{scale}.pdf"
    if not path.exists():
        return {"file": "", "command": command(table, scale)}
    return {"file": f"/{path.relative_to(paths.ROOT).as_posix()}"}


def facts_text(summary: pd.DataFrame) -> str:
    """`facts` as the text of report/facts.json."""
    return json.dumps(facts(summary), indent=1, ensure_ascii=False) + "\n"


def compile_document(document: str, **options: Any) -> bytes | list[bytes]:
    """The document as PDF, or with `format="svg"` its pages, set as large as keeps it to the pages that it may have.

    Raises TypstError where a sentence contradicts its claim.
    """
    most, sizes = FITS[document]

    def at(points: float, **options: Any) -> bytes | list[bytes]:
        return typst.compile(
            str(paths.ROOT / document / f"{document}.typ"), root=str(paths.ROOT), ignore_system_fonts=True,
            sys_inputs={"points": str(points)}, **options,
        )  # fmt: skip

    def overflows(points: float) -> bool:
        pages = at(points, format="svg")
        return isinstance(pages, list) and len(pages) > most

    first_too_large = bisect(sizes, False, key=overflows)
    return at(sizes[max(first_too_large - 1, 0)], **options)


def method_figure() -> bytes:
    """The figure of the method alone, as SVG, for the README."""
    return typst.compile(
        str(paths.ROOT / "report" / "method.typ"), root=str(paths.ROOT), format="svg", ignore_system_fonts=True
    )


def stale() -> list[str]:
    """What of the documents is not as it would be made now, a sentence each."""
    path, page = paths.ROOT / FACTS, (paths.ROOT / "README.md").read_text(encoding="utf-8")
    text = path.read_text(encoding="utf-8") if path.exists() else ""
    try:
        expected = facts_text(read_summary())
    except (FileNotFoundError, ValueError) as error:
        return [str(error)]
    found = [] if text == expected else [f"{FACTS} is not what the summary and declarations give"]
    makers = {f"{name}/{name}.pdf": partial(compile_document, name) for name in FITS}
    for name, make in (makers | {"report/method.svg": method_figure}).items():
        there = paths.ROOT / name
        try:
            if not there.exists() or there.read_bytes() != make():
                found.append(f"{name} is not made from its sources: `make documents` makes it")
        except RuntimeError as error:
            found.append(f"{name} cannot be made: {error}")
    return found + ([] if readme(page) == page else ["README.md: its tables of costs and speed are not those of today"])
