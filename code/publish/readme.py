"""The blocks of the README that are made from the records, from arithmetic and from the benchmark.

`readme(text)` is the README with the text between <!-- name --> and <!-- /name --> made anew, for each of BLOCKS.
"""

from __future__ import annotations

import pandas as pd

import files
from analysis.claims import CLAIMS, judged
from analysis.quantities import printed
from analysis.summary import parsed
from experiments.settings import OFFICIAL
from files import read_json, read_table, write_atomically
from publish.labels import TITLES
from publish.result_files import NOTHING, recorded, summary_text
from publish.sheets import parts, sheet_of, wide
from publish.tables import markdown, missing, notes

IN_SHORT = (  # claims in the README
    "few-parameters", "e2e-matches", "e2e-top2", "e2e-rank", "glue-matches", "mlp-first", "higher-rate",
)  # fmt: skip
IN_FULL = ("table3", "table2")  # tables in the README
COLUMNS = (  # of these tables, if a row fills them
    "experiment", "n", "trainable", "BLEU", "metric", "paper's rule", "verdict", "held-out", "held-out verdict",
    "paper's row", "paper BLEU", "paper",
)  # fmt: skip
SEEDS = {"table3": 3, "table2": 5}  # as the paper has them
EVENING = (  # table -> rows that are done together
    ("table3", ("gpt2-medium/lora-r4", "gpt2-medium/full")),
    ("table3", ("gpt2/lora-r4", "gpt2/full", "gpt2-large/lora-r4")),
    ("table2", ("roberta-base/mrpc", "roberta-base/rte", "roberta-base/stsb")),
)
BENCHMARKS = {  # name in benchmark.py -> title, in the README's order
    "step": "LoRA step of GPT-2 small", "decode": "beam search, 64 inputs", "metrics": "E2E metrics, test set",
    "glue": "GLUE", "smollm2-step": "LoRA step of SmolLM2-135M", "smollm2-decode": "SmolLM2-135M, ten beams",
}  # fmt: skip


def write_readme() -> None:
    """Make the blocks of README.md anew; ValueError if the lines around one are missing."""
    page = files.ROOT / "README.md"
    write_atomically(page, readme(page.read_text(encoding="utf-8")))


def readme(text: str) -> str:
    """The README with all blocks made anew; ValueError if the lines around one are missing."""
    for name, block in BLOCKS.items():
        text = with_block(text, name, block())
    return text


def with_block(page: str, name: str, block: str) -> str:
    """The page with a new text between `<!-- name -->` and `<!-- /name -->`; ValueError if either is missing."""
    before, begin, rest = page.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        raise ValueError(
            f"expected the lines <!-- {name} --> and <!-- /{name} --> in README.md, around what is generated; found "
            f"{'no end' if begin else 'no beginning'}: put both where it belongs"
        )
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def claims_block() -> str:
    """The claims of IN_SHORT with their verdicts at scale `cpu`."""
    findings = judged(parsed(summary_text([cells for *_, cells in recorded()])))
    rows = []
    for claim in (claim for claim in CLAIMS if claim.name in IN_SHORT):
        finding = findings[claim.name, "cpu"]
        rows.append([claim.says, claim.source, finding.verdict, finding.evidence, str(finding.n)])
    return markdown(pd.DataFrame(rows, columns=["claim", "source", "here", "evidence", "n"]), numbers=["n"])


def results_block() -> str:
    """The main tables in short, with the command of every row."""
    block = []
    for table, scale, cells in recorded():
        for part in parts(wide(cells), table).values() if table in IN_FULL else ():
            if (part["variant"] != OFFICIAL).all():
                run = part[part["n"] > 0]
                rows = run.to_dict("records")
                block += [f"**{TITLES[table]}, scale `{scale}`**"]
                block += [markdown(sheet_of(rows, COLUMNS))]
                more = len(missing(part))
                block += [f"{more} more {'row is' if more == 1 else 'rows are'} not run yet."] if more else []
                block += ["\n".join(f"- {note}" for note in notes(run, scale))]
                commands = "\n".join(row["command"] for row in rows)
                block += ["<details><summary>The command of every row</summary>", f"```\n{commands}\n```", "</details>"]
    if not block:
        return NOTHING
    return "\n\n".join([*block, "All tables, with every metric and cost: [results/tables](results/tables/README.md)."])


def cost_rows() -> list[list[str]]:
    """[table, model, runs with the paper's seeds, A100 hours of all, gigabytes of the largest], by arithmetic."""
    runs: dict[tuple[str, str], list[dict[str, str]]] = {}
    for run in read_table("paper_costs.csv"):
        runs.setdefault((run["experiment"].split("/")[0], run["model"]), []).append(run)
    return [
        [
            TITLES[table], model, str(len(costs) * SEEDS[table]),
            f"{sum(int(cost['minutes']) for cost in costs) * SEEDS[table] / 60:,.0f}",
            f"{max(float(cost['gigabytes']) for cost in costs):.0f}",
        ]
        for (table, model), costs in runs.items()
    ]  # fmt: skip


def costs_block() -> str:
    """The cost of the paper's runs."""
    sheet = pd.DataFrame(cost_rows(), columns=["table", "model", "runs", "A100 hours", "GB"])
    table = markdown(sheet, numbers=["runs", "A100 hours", "GB"])
    return f"{table}\n\nWhat an evening on an A100 buys, one run at a time:\n\n{evening()}"


def evening() -> str:
    """The commands of EVENING and about how many hours each takes with the paper's seeds."""
    lines = []
    for table, rows in EVENING:
        chosen = [f"{row}/{each}" for row in rows for each in (("full", "lora-r8") if table == "table2" else ("",))]
        costs = [
            float(run["minutes"]) * SEEDS[table]
            for run in read_table("paper_costs.csv")
            if run["experiment"] in [f"{table}/{row}".rstrip("/") for row in chosen]
        ]
        few = f"--rows {' '.join(row.rstrip('/') for row in chosen)} --seeds {' '.join(map(str, range(SEEDS[table])))}"
        lines.append(
            f"- about {sum(costs) / 60:.1f} hours, {len(costs) * SEEDS[table]} runs: "
            f"`python code/reproduce.py sweep {table} --scale paper {few}`"
        )
    return "\n".join(lines)


def speed_rows() -> list[list[str]]:
    """[comparison, ratio, threads and repetitions] of every ratio that `benchmark.py` measured."""
    rows = []
    for name, title in BENCHMARKS.items():
        path = files.RESULTS / "benchmark" / f"{name}.json"
        try:
            run = read_json(path)
        except (OSError, ValueError) as error:
            why = "not yet" if isinstance(error, FileNotFoundError) else f"{path.name} is damaged"
            rows.append([title, "–", f"{why}: `python code/benchmark.py {name}`"])
            continue
        times = run["repetitions"]
        conditions = f"{run['threads']} threads, " + (f"up to {times} repetitions" if times > 1 else "1 repetition")
        ratios = {ratio: value for ratio, value in run["measured"].items() if "/" in ratio}
        rows += [[f"{title}: {ratio}", printed("ratio", value), conditions] for ratio, value in ratios.items()]
    return rows


def speed_block() -> str:
    """Time and memory against other libraries."""
    sheet = pd.DataFrame(speed_rows(), columns=["what / against what", "ratio", "measured with"])
    return markdown(sheet, numbers=["ratio"])


BLOCKS = {"claims": claims_block, "results": results_block, "costs": costs_block, "speed": speed_block}
