"""What the paper claims, each as a predicate over `results/summary.csv`: it holds here, does not, or is open.

    judged(read_summary())["e2e-matches", "cpu"]    # Finding(verdict="does not hold", evidence="...", n=1)

The report, the poster and their tests read nothing else about the outcome. A sentence in them is tied to a claim and to
the verdicts under which it is true (`says` of report/parts.typ), so a sentence that has gone stale does not compile.

Two rows are compared at the seeds, and over the tasks, that both have; time and memory by their ratio. One seed has no
interval: it decides only where the two lie further apart than FAR margins, and then it can say which is ahead but not
by how much. Learning rates of a grid lie an octave or more apart and are compared as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from io import StringIO
from math import exp, log
from statistics import fmean

import pandas as pd

import paths
from experiments_glue import GLUE_TASKS
from quantities import MARGIN, printed
from statistics_seeds import difference_interval, paired_differences, verdict
from tasks import TASKS, GlueTask

HOLDS, FAILS, OPEN, MISSING = "holds", "does not hold", "undecided", "not measured yet"
SCALES = ("cpu", "paper")
BASES = {"cpu": ("gpt2-mini", "minilm"), "paper": ("gpt2-medium", "roberta-base")}  # the models claims are judged on
FAR = 5.0  # margins
LOSS_MARGIN = 0.02  # nats a token
SAVING = 0.05  # of time or memory; less than that is no saving

Scores = dict[str, dict[int, float]]  # task -> seed -> value


@dataclass(frozen=True)
class Finding:
    """How a claim fares at one scale."""

    verdict: str  # HOLDS, FAILS, OPEN or MISSING
    evidence: str = ""  # the numbers it rests on, as they are printed
    n: int = 0  # seeds


@dataclass(frozen=True)
class Claim:
    """A statement of the paper or of this project, and the predicate that judges it at one scale."""

    name: str
    source: str
    says: str
    judge: Callable[[pd.DataFrame], Finding]  # of the summary's rows at one scale
    table: str  # whose sweep measures it


def read_summary() -> pd.DataFrame:
    """`results/summary.csv` as `parsed`; FileNotFoundError where it is not made yet."""
    path = paths.RESULTS / "summary.csv"
    if not path.exists():
        raise FileNotFoundError(f"expected {path}, found no such file: `make summary` makes it from the records")
    return parsed(path.read_text(encoding="utf-8"))


def parsed(text: str) -> pd.DataFrame:
    """The text of a summary as printed, all strings."""
    return pd.read_csv(StringIO(text), dtype=str, keep_default_na=False)


def judged(summary: pd.DataFrame) -> dict[tuple[str, str], Finding]:
    """(claim, scale) -> what the summary says about it."""
    at = {scale: _at(summary, scale) for scale in SCALES}
    return {(claim.name, scale): claim.judge(at[scale]) for claim in CLAIMS for scale in SCALES}


def _at(summary: pd.DataFrame, scale: str) -> pd.DataFrame:
    there = (summary["scale"] == scale) & (summary["variant"] == "paper") & summary["model"].isin(BASES[scale])
    return summary[there & (summary["n"] != "0")]


def rows(summary: pd.DataFrame, table: str, row: str, metric: str = "", rule: str = "") -> pd.DataFrame:
    """The row of a table, a line a task: its main quantity, or that of the metric or the rule asked for."""
    there = summary[(summary["table"] == table) & summary["experiment"].str.endswith(f"/{row}")]
    return there[there["metric"].isin([metric] if metric else there["metric"])
                 & there["rule"].isin([rule] if rule else there["rule"])].drop_duplicates("task")  # fmt: skip


def scores(found: pd.DataFrame) -> Scores:
    """{task: {seed: value}} of `rows`."""
    return {
        line["task"]: dict(zip(map(int, line["seeds"].split()), map(float, line["each_seed"].split()), strict=True))
        for line in found.to_dict("records")
        if line["each_seed"]
    }


def differences(ours: Scores, theirs: Scores) -> tuple[list[float], list[str]]:
    """(ours minus theirs by seed, averaged over the tasks; those tasks): all that have as many seeds as any has."""
    common = {task: ours[task].keys() & theirs.get(task, {}).keys() for task in ours}
    seeds = max(common.values(), key=len, default=set())
    if not seeds:
        return [], []
    tasks = [task for task in ours if common[task] >= seeds]
    means = [{seed: fmean(of[task][seed] for task in tasks) for seed in seeds} for of in (ours, theirs)]
    return paired_differences(*means), tasks


def compared(found: Sequence[float], margin: float, higher_is_better: bool = True) -> str:
    """The verdict of `statistics_seeds`, and of one seed *better* or *worse* where it is FAR margins off."""
    word = verdict(found, margin, higher_is_better)
    if word == "one seed only" and abs(found[0]) > FAR * margin:
        return "better" if (found[0] > 0) == higher_is_better else "worse"
    return word


def _evidence(names: str, metric: str, found: Sequence[float], tasks: Sequence[str]) -> str:
    interval = difference_interval(found)
    shown = [printed(metric, value, "+") for value in (fmean(found), *(interval or ()))]
    within = f" (90% interval {shown[1]} to {shown[2]})" if interval else ""
    glue = [TASKS[task].title for task in tasks if isinstance(TASKS[task], GlueTask)]
    over = f" ({'mean of ' * (len(glue) > 1)}{', '.join(glue)})" if glue else ""
    what = {"dev_loss": "nats of dev loss", "": "points"}.get(metric, metric)
    return f"{names}: {shown[0]} {what}{within}{over}"


# What a verdict of `statistics_seeds` says of a claim; of another word, nothing.
NO_WORSE = {"equivalent": HOLDS, "better": HOLDS, "worse": FAILS}
BETTER = {"better": HOLDS, "equivalent": FAILS, "worse": FAILS}


def _comparison(outcomes: dict[str, str], names: str, ours: tuple, theirs: tuple) -> Callable[[pd.DataFrame], Finding]:
    """A judge of `ours` against `theirs`, each (table, row)."""

    def judge(summary: pd.DataFrame) -> Finding:
        mine, other = rows(summary, *ours), rows(summary, *theirs)
        found, tasks = differences(scores(mine), scores(other))
        if not found:
            return Finding(MISSING)
        metric = mine.set_index("task")["metric"][tasks[0]] if len(tasks) == 1 else ""
        outcome = outcomes.get(compared(found, MARGIN), OPEN)
        return Finding(outcome, _evidence(names, metric, found, tasks), len(found))

    return judge


no_worse, better = partial(_comparison, NO_WORSE), partial(_comparison, BETTER)


def glue_average(rule: str) -> Callable[[pd.DataFrame], Finding]:
    """LoRA r=8 against the reference of its row on each task of GLUE, averaged; OPEN with fewer than half of them."""

    def judge(summary: pd.DataFrame) -> Finding:
        mine = rows(summary, "table2", "lora-r8", rule=rule)
        there = summary[summary["experiment"].isin(mine["reference"]) & (summary["rule"] == rule)]
        found, tasks = differences(scores(mine), scores(there.drop_duplicates("task")))
        if not found:
            return Finding(MISSING)
        evidence = _evidence("LoRA r=8 minus full", "", found, tasks)
        if 2 * len(tasks) < len(GLUE_TASKS):
            evidence += f"; {len(tasks)} of {len(GLUE_TASKS)} tasks, too few to decide"
            return Finding(OPEN, evidence, len(found))
        return Finding(NO_WORSE.get(compared(found, MARGIN), OPEN), evidence, len(found))

    return judge


def few_parameters(summary: pd.DataFrame) -> Finding:
    """Under one percent of the model is trained: LoRA r=4 on E2E."""
    lora, full = rows(summary, "table3", "lora-r4"), rows(summary, "table3", "full")
    if lora.empty or full.empty:
        lora, full = _of_method(summary, "lora"), _of_method(summary, "full")
    if lora.empty or full.empty:
        return Finding(MISSING)
    trained, total = int(lora["trainable"].iloc[0]), int(full["trainable"].iloc[0])
    evidence = f"{trained:,} of {total:,} parameters, {100 * trained / total:.2f}%"
    return Finding(HOLDS if trained < total / 100 else FAILS, evidence, int(lora["n"].iloc[0]))


def _of_method(summary: pd.DataFrame, method: str) -> pd.DataFrame:
    """The lines of E2E's choice of learning rates, the lowest dev loss first."""
    searched = summary["experiment"].str.startswith(f"learning-rate/e2e/{method}/") & (summary["metric"] == "dev_loss")
    return summary[searched].sort_values("value", key=lambda column: column.astype(float))


def higher_rate(summary: pd.DataFrame) -> Finding:
    """LoRA's best learning rate on E2E is at least twice that of full fine-tuning."""
    lora, full = _of_method(summary, "lora"), _of_method(summary, "full")
    if lora.empty or full.empty:
        return Finding(MISSING)
    ours, theirs = (float(found["learning_rate"].iloc[0]) for found in (lora, full))
    evidence = f"lowest dev loss at {ours:g} (LoRA r=4) and at {theirs:g} (full)"
    return Finding(HOLDS if ours >= 2 * theirs else FAILS, evidence, int(lora["n"].iloc[0]))


def inside_grid(summary: pd.DataFrame) -> Finding:
    """On E2E no method's best learning rate is the lowest or the highest tried; of LoRA and full both are needed."""
    searched = summary["experiment"].str.extract(r"^learning-rate/e2e/([^/]+)/")[0].dropna().unique()
    if not {"lora", "full"} <= {*searched}:
        return Finding(MISSING)
    found = {method: _of_method(summary, method) for method in searched}
    rates = {method: of["learning_rate"].astype(float) for method, of in found.items()}
    at_end = [method for method, tried in rates.items() if not tried.min() < tried.iloc[0] < tried.max()]
    shown = {method: tried for method, tried in rates.items() if method in (at_end or ("lora", "full"))}
    evidence = "; ".join(
        f"{method}: {tried.iloc[0]:g} of {', '.join(f'{rate:g}' for rate in sorted(tried))}"
        for method, tried in shown.items()
    )
    others = f"; likewise {len(rates) - len(shown)} other methods" if not at_end and len(rates) > len(shown) else ""
    return Finding(FAILS if at_end else HOLDS, evidence + others, min(int(of["n"].min()) for of in found.values()))


def same_dev_loss(method: str, named: str) -> Callable[[pd.DataFrame], Finding]:
    """A judge of whether LoRA at its best rate reaches the dev loss of the method at its own."""

    def judge(summary: pd.DataFrame) -> Finding:
        lora, other = _of_method(summary, "lora").head(1), _of_method(summary, method).head(1)
        found, tasks = differences(scores(lora), scores(other))
        if not found:
            return Finding(MISSING)
        word = compared(found, LOSS_MARGIN, higher_is_better=False)
        evidence = f"{lora['value'].iloc[0]} (LoRA r=4) and {other['value'].iloc[0]} ({named}); "
        evidence += _evidence("difference", "dev_loss", found, tasks)
        return Finding(NO_WORSE.get(word, OPEN), evidence, len(found))

    return judge


def cheaper(metric: str, unit: str) -> Callable[[pd.DataFrame], Finding]:
    """LoRA r=4 takes less of it than full fine-tuning, both on E2E: by more than SAVING, in ratios paired by seed."""

    def judge(summary: pd.DataFrame) -> Finding:
        lora, full = (rows(summary, "table3", row, metric) for row in ("lora-r4", "full"))
        ours, theirs = (
            {task: {seed: log(value) for seed, value in of.items()} for task, of in scores(found).items()}
            for found in (lora, full)
        )
        found, _ = differences(ours, theirs)
        if not found:
            return Finding(MISSING)
        ratio, *interval = (f"{exp(value):.2f}" for value in (fmean(found), *(difference_interval(found) or ())))
        within = f" (90% interval {' to '.join(interval)})" if interval else ""
        evidence = f"{lora['value'].iloc[0]} and {full['value'].iloc[0]} {unit}, ratio {ratio}{within}"
        word = compared(found, -log(1 - SAVING), higher_is_better=False)
        return Finding(BETTER.get(word, OPEN), evidence, len(found))

    return judge


def mistake_outweighs(summary: pd.DataFrame) -> Finding:
    """Of the mistakes made on E2E with LoRA the dearest costs more than LoRA lacks to full fine-tuning there."""
    of = summary[summary["experiment"].str.startswith("pitfalls/e2e/") & (summary["metric"] == "BLEU")]
    found = {line["experiment"].rpartition("/")[2]: scores(of[of["experiment"] == line["experiment"]])["e2e"]
             for line in of.to_dict("records")}  # fmt: skip
    right, full = found.pop("correct", None), found.pop("full-correct", None)
    if not right or not full:
        return Finding(MISSING)
    lacks = paired_differences(full, right)
    mistakes = {row: each for row, each in found.items() if not row.startswith("full-")}
    costs = {row: paired_differences(right, each) for row, each in mistakes.items() if each.keys() == right.keys()}
    if not costs or right.keys() != full.keys():
        return Finding(MISSING)
    dearest = max(costs, key=lambda row: fmean(costs[row]))
    more = [cost - lack for cost, lack in zip(costs[dearest], lacks, strict=True)]
    evidence = f"{dearest}: {printed('BLEU', -fmean(costs[dearest]), '+')} BLEU; "
    evidence += _evidence("LoRA minus full", "BLEU", [-lack for lack in lacks], ["e2e"])
    return Finding(BETTER.get(compared(more, MARGIN), OPEN), evidence, len(more))


LORA_E2E, FULL_E2E = ("table3", "lora-r4"), ("table3", "full")
CLAIMS = (
    Claim("few-parameters", "Section 4.2", "LoRA trains less than one percent of the parameters.",
          few_parameters, "table3"),
    Claim("e2e-matches", "Table 3", "On E2E, LoRA r=4 is no worse than full fine-tuning.",
          no_worse("LoRA r=4 minus full", LORA_E2E, FULL_E2E), "table3"),
    Claim("e2e-dev-loss", "this project", "On E2E, LoRA r=4 reaches the dev loss of full fine-tuning.",
          same_dev_loss("full", "full"), "learning-rate"),
    Claim("top2-matches", "beyond the paper", "On E2E, training the top two layers is no worse than training all.",
          no_worse("FT Top2 minus full", ("table3", "top2"), FULL_E2E), "table3"),
    Claim("e2e-top2", "Table 3", "On E2E, LoRA r=4 is better than training the top two layers.",
          better("LoRA r=4 minus FT Top2", LORA_E2E, ("table3", "top2")), "table3"),
    Claim("e2e-adapter-h", "Table 3", "On E2E, LoRA r=4 is better than Adapter H with more parameters.",
          better("LoRA r=4 minus Adapter H", LORA_E2E, ("table3", "adapter-h")), "table3"),
    Claim("e2e-adapters", "Table 3", "On E2E, LoRA r=4 is better than an adapter layer of the same size.",
          better("LoRA r=4 minus Adapter L", LORA_E2E, ("table3", "adapter-l")), "table3"),
    Claim("adapters-dev-loss", "this project", "On E2E, LoRA r=4 reaches the dev loss of that adapter layer.",
          same_dev_loss("adapter-l", "Adapter L"), "learning-rate"),
    Claim("e2e-prefix", "Table 3", "On E2E, LoRA r=4 is better than trained prefixes (PreLayer) of the same size.",
          better("LoRA r=4 minus PreLayer", LORA_E2E, ("table3", "prelayer")), "table3"),
    Claim("e2e-rank", "Table 18", "On E2E, rank 4 is no worse than rank 8.",
          no_worse("r=4 minus r=8", LORA_E2E, ("table3", "lora-r8")), "table3"),
    Claim("glue-matches", "Table 2", "On GLUE, LoRA r=8 is on average no worse than full fine-tuning.",
          glue_average("paper"), "table2"),
    Claim("glue-honest", "this project", "With the epoch chosen on held-out rows, too, LoRA r=8 is no worse on GLUE.",
          glue_average("honest"), "table2"),
    Claim("query-value", "Table 5", "At one budget, query and value are better than query alone.",
          better("query, value r=4 minus query r=8", ("table5", "query-value-r4"), ("table5", "query-r8")), "table5"),
    Claim("rank-one", "Table 6", "With query and value, rank 1 is no worse than rank 8.",
          no_worse("r=1 minus r=8", ("table6", "query-value-r1"), ("table6", "query-value-r8")), "table6"),
    Claim("attention-suffices", "beyond the paper", "Adapting every matrix brings nothing over query and value.",
          no_worse("query, value minus all matrices, r=8", ("table6", "query-value-r8"), ("table6", "all-r8")),
          "table6"),
    Claim("mlp-first", "beyond the paper", "At rank 8, adapting the MLP is better than query and value.",
          better("MLP minus query, value, r=8", ("table6", "mlp-r8"), ("table6", "query-value-r8")), "table6"),
    Claim("inside-grid", "this project", "Each method's best learning rate on E2E lies inside the grid searched.",
          inside_grid, "learning-rate"),
    Claim("higher-rate", "Table 12", "LoRA wants a higher learning rate than full fine-tuning.",
          higher_rate, "learning-rate"),
    Claim("less-memory", "Section 4.2", "LoRA trains in less memory than full fine-tuning.",
          cheaper("peak_memory_gib", "GiB"), "table3"),
    Claim("less-time", "Section 4.2", "LoRA trains in less time than full fine-tuning.",
          cheaper("training_minutes", "minutes"), "table3"),
    Claim("growing-rank", "beyond the paper", "On E2E, a rank that grows in stages to 8 is no worse than rank 8.",
          no_worse("stages minus r=8", ("rank-over-time", "sequential-fixed-unfrozen"), ("table3", "lora-r8")),
          "rank-over-time"),
    Claim("mistakes-outweigh", "this project", "On E2E, one mistake costs more than LoRA lacks to full fine-tuning.",
          mistake_outweighs, "pitfalls"),
    Claim("adaptive-rank", "beyond the paper", "On E2E, a rank of 8 on average that moves is no worse than rank 8.",
          no_worse("adaptive minus r=8", ("rank-over-time", "adaptive"), ("table3", "lora-r8")), "rank-over-time"),
)  # fmt: skip
