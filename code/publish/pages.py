"""The pages that are read on GitHub: their blocks that follow from records, arithmetic, benchmark and broken runs.

A block is the text between <!-- name --> and <!-- /name -->. PAGES says which page has which; all else in them is
written by hand.
"""

from __future__ import annotations

from collections.abc import Callable

import pandas as pd

import files
from analysis.claims import CLAIMS, LEADING, base_of, judged
from analysis.paper_values import paper_value
from analysis.quantities import printed
from analysis.summary import parsed
from experiments.catalogue import EXPERIMENTS, find
from experiments.settings import OFFICIAL, Experiment
from files import read_json, read_table, write_atomically
from publish.efficiency import efficiency_block, shown, table1_block
from publish.labels import BASE_MEANS, TITLES, label
from publish.result_files import KEPT_SCALES, NOTHING, recorded, summary_text
from publish.sheets import parts, sheet_of, wide
from publish.tables import markdown, missing, notes
from runs import records
from tasks.catalogue import TASKS

PAPERS_BASE = "gpt2-medium"  # in the README's table, beside LEADING
FOUND = ("e2e-matches", "e2e-metrics", "glue-matches")  # claims in the README
IN_SHORT = (  # claims beside the results
    "few-parameters", "e2e-matches", "e2e-top", "e2e-rank", "glue-matches", "mlp-first", "higher-rate",
)  # fmt: skip
IN_FULL = ("table3", "table2")  # tables beside the results
COLUMNS = (  # of these tables, if a row fills them
    "experiment", "n", "trainable", "BLEU", "metric", "paper's rule", "verdict", "held-out", "held-out verdict",
    "paper's row", "paper BLEU", "paper",
)  # fmt: skip
SCANNED_ROWS = (  # of the README's one table
    "full", "lora-r4", "lora-r8", "lora-mlp-r4", "lora-all-r8", "adapter-h",
)  # fmt: skip
SCANNED = {  # columns of the README's one table -> their headings there
    "method": "method", "trainable": "trained parameters", "n": "seeds", "BLEU": "BLEU",
    "mean_words": "words per output", "verdict": "against full fine-tuning", "paper BLEU": "the paper's BLEU",
}  # fmt: skip
SEEDS = {"table3": 3, "table2": 5}  # as the paper has them
EVENING = (  # table -> rows that are done together
    ("table3", ("gpt2-medium/lora-r4", "gpt2-medium/full")),
    ("table3", ("gpt2/lora-r4", "gpt2/full", "gpt2-large/lora-r4")),
    ("table2", ("roberta-base/mrpc", "roberta-base/rte", "roberta-base/stsb")),
)
BENCHMARKS = {  # name in benchmark.py -> title, in the README's order
    "step": "LoRA step of GPT-2 small", "decode": "beam search, 64 inputs", "metrics": "E2E metrics, test set",
    "glue": "GLUE", "smollm2-step": "LoRA step of SmolLM2-135M", "smollm2-decode": "SmolLM2-135M, ten beams",
    "training": "a step at the usual length", "serving": "GPT-2 small",
    "serving-beams": "GPT-2 small, ten beams", "serving-requests": "GPT-2 small",
    "memory": "training", "precision": "LoRA step of SmolLM2-135M",
    "adapters": "GPT-2 medium; storage: GPT-2 small", "profile": "a step at the usual length",
}  # fmt: skip
WHOLE = ("serving-requests", "memory", "precision", "adapters", "profile")  # of these, what is no ratio is shown too


def write_pages() -> None:
    """Make the blocks of all pages anew; ValueError if the lines around one are missing."""
    for name in PAGES:
        path = files.ROOT / name
        write_atomically(path, page(name, path.read_text(encoding="utf-8")))


def page(name: str, text: str) -> str:
    """The text of a page with all its blocks made anew; ValueError if the lines around one are missing."""
    for block, made in PAGES[name].items():
        text = with_block(name, text, block, made())
    return text


def with_block(page: str, text: str, name: str, block: str) -> str:
    """The text with a new block between `<!-- name -->` and `<!-- /name -->`; ValueError if either is missing."""
    before, begin, rest = text.partition(f"<!-- {name} -->")
    _, end, after = rest.partition(f"<!-- /{name} -->")
    if not begin or not end:
        raise ValueError(
            f"expected the lines <!-- {name} --> and <!-- /{name} --> in {page}, around what is generated; found "
            f"{'no end' if begin else 'no beginning'}: put both where it belongs"
        )
    return f"{before}{begin}\n\n{block}\n\n{end}{after}"


def scope_block() -> str:
    """Which models were run on what, and whether one of the paper's was."""
    runs = [record for scale in KEPT_SCALES for record in records.read_records(scale)]
    of_model: dict[tuple[str, str], list[dict]] = {}
    for run in runs:
        of_model.setdefault((run["settings"]["model"], run["scale"]), []).append(run)
    lines = []
    for (model, scale), own in sorted(of_model.items(), key=lambda item: -_size(item[1])):
        means = f" ({BASE_MEANS[model]})" if model in BASE_MEANS else ""
        searches = sum(run["name"].startswith("learning-rate/") for run in own)
        chosen, rest = f"; {searches} chose learning rates" * (searches > 0), {_corpus(run) for run in own}
        lines.append(
            f"- `{model}`, {_size(own) / 1e6:.1f} million parameters{means}: {len(own)} runs on "
            f"{' and '.join(sorted(rest))} at scale `{scale}`{chosen}"
        )
    if all(run["scale"] != "paper" for run in runs):
        lines.append("- **No model of the paper's size so far.** Their experiments are declared, with estimated costs.")
    return "\n".join(lines)


def _size(runs: list[dict]) -> int:
    """Parameters of the base: the fewest of its runs, since methods add some."""
    return min(run["parameters"]["total"] for run in runs)


def _corpus(run: dict) -> str:
    return TITLES[TASKS[run["settings"]["task"]].paper_table].partition(": ")[2]


def found_block() -> str:
    """The claims of FOUND as sentences that are true, each with its evidence."""
    findings = judged(parsed(summary_text([cells for *_, cells in recorded()])))
    lines = []
    for claim in (claim for claim in CLAIMS if claim.name in FOUND):
        finding = findings[claim.name, "cpu"]
        seeds = f"; {finding.n} {'seed' if finding.n == 1 else 'seeds'}" if finding.n else ""
        sentence = claim.sentence(finding.verdict)
        numbers = finding.evidence.partition(": ")[2]  # without the names, which the page gives once
        lines.append(f"- **{sentence}** `{base_of(claim, 'cpu')}`: {numbers or 'not measured yet'}{seeds}.")
    return "\n".join(lines)


def _beside(experiment: Experiment) -> dict[str, str]:
    """A row's name, and the paper's row of that name with its BLEU, which is of GPT-2 medium."""
    row = {"method": label(experiment)}
    theirs = EXPERIMENTS.get(f"table3/{PAPERS_BASE}/{experiment.row}")
    value = theirs and paper_value(theirs, "BLEU")
    return row | ({"paper BLEU": f"{value}{'*' * value.row.count('*')}"} if value else {})


def scanned_block() -> str:
    """SCANNED_ROWS of Table 3 of the base LEADING that were run; the paper's numbers in columns of their own."""
    names = [f"table3/{LEADING}/{row}" for row in SCANNED_ROWS]
    shown = []
    for table, scale, cells in recorded():
        for part in parts(wide(cells), table).values() if (table, scale) == ("table3", "cpu") else ():
            run = part[(part["n"] > 0) & part["experiment"].isin(names)]
            shown += [row | _beside(find(row["experiment"])) for row in run.to_dict("records")]
    if not shown:
        return NOTHING
    sheet = sheet_of(shown, tuple(SCANNED)).rename(columns=lambda name: SCANNED.get(name, name))
    return markdown(sheet)


def claims_block() -> str:
    """The claims of IN_SHORT with their verdicts at scale `cpu`."""
    findings = judged(parsed(summary_text([cells for *_, cells in recorded()])))
    rows = []
    for claim in (claim for claim in CLAIMS if claim.name in IN_SHORT):
        finding = findings[claim.name, "cpu"]
        base = f"`{base_of(claim, 'cpu')}`"
        rows.append([claim.says, claim.source, base, finding.verdict, finding.evidence, str(finding.n)])
    columns = ["claim", "source", "model", "here", "evidence", "n"]
    return markdown(pd.DataFrame(rows, columns=columns), numbers=["n"])


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
    return "\n\n".join(block)


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
    """[comparison, ratio or size, threads and repetitions] of what `benchmark.py` measured."""
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
        threads = f"{run['threads']} thread{'s' * (run['threads'] > 1)}"
        conditions = f"{threads}, " + (f"up to {times} repetitions" if times > 1 else "1 repetition")
        for quantity, value in run["measured"].items():
            if "/" in quantity or name in WHOLE:
                text = shown(value) if isinstance(value, list) else printed("ratio", value)
                rows.append([f"{title}: {quantity}", text, conditions])
    return rows


def speed_block() -> str:
    """Time and memory against other libraries."""
    sheet = pd.DataFrame(speed_rows(), columns=["what / against what", "ratio or size", "measured with"])
    return markdown(sheet, numbers=["ratio or size"])


def robustness_block() -> str:
    """What was done to the project on purpose, how often, and what came of it."""
    path = files.RESULTS / "robustness.json"
    try:
        parts = [part for name, part in read_json(path).items() if name != "digest"]
    except FileNotFoundError:
        return "Not yet: `make break`."
    outcomes = sorted(tuple(map(str, outcome.values())) for part in parts for outcome in part["outcomes"])
    sheet = pd.DataFrame(outcomes, columns=["kind", "fault", "outcome", "times"])
    keys = ("date", "git_commit", "python", "torch", "transformers")
    made = sorted({tuple(part[key] for key in keys) for part in parts})
    notes = [
        f"On {day}, of commit {commit[:7]}: Python {p}, torch {t}, transformers {h}." for day, commit, p, t, h in made
    ]
    return "\n\n".join([markdown(sheet, numbers=["times"]), "\n".join(f"- {note}" for note in notes)])


COSTS = {"costs": costs_block, "efficiency": efficiency_block, "table1": table1_block, "speed": speed_block}
PAGES: dict[str, dict[str, Callable[[], str]]] = {
    "README.md": {"scope": scope_block, "found": found_block, "scanned": scanned_block},
    "results/README.md": {"claims": claims_block, "results": results_block},
    "results/costs.md": COSTS,
    "results/verification.md": {"robustness": robustness_block},
}
