"""What the paper claims, each as a predicate over `results/summary.csv`: it holds here, does not, or is open.

    judged(read_summary())["e2e-matches", "cpu"]    # Finding(verdict="does not hold", evidence="...", n=1)

The report, the poster and their tests read nothing else about the outcome. Each sentence in them names a
claim and the verdicts under which it is true (`says` of report/parts.typ): a stale sentence does not compile.
`comparisons.py` says how two rows are compared; a claim that asks something else has its judge below.
"""

from __future__ import annotations

from dataclasses import dataclass
from statistics import fmean

import pandas as pd

from analysis.comparisons import (
    BETTER,
    FAILS,
    HOLDS,
    MISSING,
    OPEN,
    Finding,
    Judge,
    better,
    cheaper,
    compared,
    e2e_lines,
    each_seed,
    evidence_of,
    glue_average,
    lora_searched,
    no_worse,
    rows,
    same_dev_loss,
    tried_rates,
)
from analysis.quantities import MARGIN, printed
from analysis.seed_statistics import paired_differences
from analysis.subspace_claims import amplifies_new, first_direction, seeds_share

JUDGED_SCALES = ("cpu", "paper")
JUDGED_BASES = {
    "cpu": ("gpt2-mini", "minilm"),
    "paper": ("gpt2-medium", "roberta-base"),
}  # the models claims are judged on


@dataclass(frozen=True)
class Claim:
    """A statement of the paper or of this project, and the predicate that judges it at one scale."""

    name: str
    source: str
    says: str
    judge: Judge
    table: str  # whose sweep measures it
    base: str | None = None  # the model of scale `cpu` that it is about, if not the scale's


def judged(summary: pd.DataFrame) -> dict[tuple[str, str], Finding]:
    """{(name of a claim, scale): what the summary says about it}."""
    return {
        (claim.name, scale): claim.judge(_judged_on(summary, scale, claim))
        for claim in CLAIMS
        for scale in JUDGED_SCALES
    }


def _judged_on(summary: pd.DataFrame, scale: str, claim: Claim) -> pd.DataFrame:
    bases = (claim.base,) if claim.base else JUDGED_BASES[scale]
    chosen = (summary["scale"] == scale) & (summary["variant"] == "paper") & summary["model"].isin(bases)
    return summary[chosen & (summary["n"] != "0")]


def few_parameters(summary: pd.DataFrame) -> Finding:
    """On E2E, LoRA r=4 trains under one percent of the model."""
    lora, full = (rows(summary, "table3", row) for row in ("lora-r4", "full"))
    if lora.empty or full.empty:
        tried = tried_rates(summary)
        searched, _ = lora_searched(tried)
        if not {searched, "full"} <= tried.keys():
            return Finding(MISSING)
        lora, full = tried[searched], tried["full"]
    trained, total = int(lora["trainable"].iloc[0]), int(full["trainable"].iloc[0])
    evidence = f"{trained:,} of {total:,} parameters, {printed('share', 100 * trained / total)}%"
    return Finding(HOLDS if trained < total / 100 else FAILS, evidence, int(lora["n"].iloc[0]))


def higher_rate(summary: pd.DataFrame) -> Finding:
    """LoRA's best learning rate on E2E is at least twice that of full fine-tuning."""
    tried = tried_rates(summary)
    lora, name = lora_searched(tried)
    if not {lora, "full"} <= tried.keys():
        return Finding(MISSING)
    ours, theirs = (float(tried[row]["learning_rate"].iloc[0]) for row in (lora, "full"))
    evidence = f"lowest dev loss at {ours:g} ({name}) and at {theirs:g} (full)"
    return Finding(HOLDS if ours >= 2 * theirs else FAILS, evidence, int(tried[lora]["n"].iloc[0]))


def inside_grid(summary: pd.DataFrame) -> Finding:
    """On E2E no method's best learning rate is the lowest or the highest tried. It needs both LoRA and full."""
    tried = tried_rates(summary)
    lora, _ = lora_searched(tried)
    if not {lora, "full"} <= tried.keys():
        return Finding(MISSING)
    rates = {row: lines["learning_rate"].astype(float) for row, lines in tried.items()}  # the best one first
    edge_rows = [row for row, grid in rates.items() if not grid.min() < grid.iloc[0] < grid.max()]
    shown = {row: grid for row, grid in rates.items() if row in (edge_rows or (lora, "full"))}
    evidence = "; ".join(
        f"{row}: {grid.iloc[0]:g} of {', '.join(f'{rate:g}' for rate in sorted(grid))}" for row, grid in shown.items()
    )
    others = f"; likewise {len(rates) - len(shown)} other methods" if not edge_rows and len(rates) > len(shown) else ""
    seeds = min(int(lines["n"].min()) for lines in tried.values())
    return Finding(FAILS if edge_rows else HOLDS, evidence + others, seeds)


def mistake_outweighs(summary: pd.DataFrame) -> Finding:
    """On E2E, leaving the end token out of the loss costs LoRA more than full fine-tuning is ahead of it.

    The mistake is named beforehand: the worst of sixteen would outweigh much by chance alone.
    """
    lines = e2e_lines(summary, "pitfalls", "BLEU")
    bleu = {line["experiment"].rpartition("/")[2]: each_seed(line) for line in lines.to_dict("records")}
    right, wrong, full = (bleu.get(row, {}) for row in ("correct", "untrained-end", "full-correct"))
    seeds = right.keys() & wrong.keys() & full.keys()
    if not seeds:
        return Finding(MISSING)
    costs, gaps = (
        {seed: better[seed] - worse[seed] for seed in seeds} for better, worse in ((right, wrong), (full, right))
    )
    excess = paired_differences(costs, gaps)
    evidence = f"untrained-end: {printed('BLEU', -fmean(costs.values()), '+')} BLEU; "
    evidence += evidence_of("LoRA minus full", "BLEU", [-gaps[seed] for seed in sorted(seeds)], ["e2e"])
    return Finding(BETTER.get(compared(excess, MARGIN), OPEN), evidence, len(excess))


def wins_by_length(summary: pd.DataFrame) -> Finding:
    """On E2E, a mistake that raises LoRA's BLEU only makes its texts longer: without the brevity penalty it is behind.

    It compares the means of the seeds that a mistake and the correct run both have.
    """
    by_metric = {}
    for metric in ("BLEU", "BLEU_unpenalised"):
        lines = e2e_lines(summary, "pitfalls", metric).to_dict("records")
        by_metric[metric] = {line["experiment"].rpartition("/")[2]: each_seed(line) for line in lines}
    if not all("correct" in rows_of_metric for rows_of_metric in by_metric.values()):
        return Finding(MISSING)
    changes: dict[str, list[float]] = {}
    for row in by_metric["BLEU"].keys() - {"correct"}:
        pairs = [paired_differences(each.get(row, {}), each["correct"]) for each in by_metric.values()]
        if not row.startswith("full-") and all(pairs):
            changes[row] = [fmean(differences) for differences in pairs]
    if not changes:
        return Finding(MISSING)
    ahead = sorted((row for row, change in changes.items() if change[0] > 0), key=lambda row: -changes[row][0])
    texts = [f"{row} {' and '.join(printed('BLEU', value, '+') for value in changes[row])}" for row in ahead]
    evidence = f"BLEU with and without the penalty: {'; '.join(texts)}" if ahead else "none raises it"
    seeds = min(len(by_metric["BLEU"][row]) for row in changes)
    return Finding(HOLDS if all(changes[row][1] < 0 for row in ahead) else FAILS, evidence, seeds)


def full_is_sound(summary: pd.DataFrame) -> Finding:
    """Full fine-tuning on E2E is in the band that was set before any comparison: SOUND."""
    lines = {metric: rows(summary, "table3", "full", metric) for metric in SOUND}
    values = {metric: list(each_seed(line.iloc[0]).values()) for metric, line in lines.items() if len(line)}
    if len(values) < len(SOUND) or not all(values.values()):
        return Finding(MISSING)
    means = {metric: fmean(each) for metric, each in values.items()}
    evidence = ", ".join(f"{SOUND[metric][1]} {printed(metric, value)}" for metric, value in means.items())
    inside = all(SOUND[metric][0](value) for metric, value in means.items())
    return Finding(HOLDS if inside else FAILS, evidence, len(values["BLEU"]))


def _best_rates(summary: pd.DataFrame, rows_asked: tuple[str, ...]) -> dict[str, float] | None:
    """{row: its best learning rate}; None where a row is not searched, or its best is the lowest or highest tried."""
    tried = tried_rates(summary)
    rates = {row: tried[row]["learning_rate"].astype(float) for row in rows_asked if row in tried}
    if len(rates) < len(rows_asked) or any(not grid.min() < grid.iloc[0] < grid.max() for grid in rates.values()):
        return None
    return {row: grid.iloc[0] for row, grid in rates.items()}


def tenfold_rate(summary: pd.DataFrame) -> Finding:
    """The best rate of LoRA on all matrices is 5 to 20 times full fine-tuning's: ten, as closely as a grid tells."""
    rates = _best_rates(summary, ("full", "lora-all-r8"))
    if rates is None:
        return Finding(MISSING)
    times = rates["lora-all-r8"] / rates["full"]
    evidence = f"{rates['lora-all-r8']:g} (LoRA r=8) and {rates['full']:g} (full): {times:g} times"
    return Finding(HOLDS if 5 <= times <= 20 else FAILS, evidence, 1)


def rate_by_rank(summary: pd.DataFrame) -> Finding:
    """The best rates of LoRA on all matrices at ranks 1, 8 and 64 differ by a factor of two, a grid step, at most."""
    rates = _best_rates(summary, RANKS_SEARCHED)
    if rates is None:
        return Finding(MISSING)
    evidence = ", ".join(f"{rate:g} (r={row.rpartition('-r')[2]})" for row, rate in rates.items())
    return Finding(HOLDS if max(rates.values()) <= 2.01 * min(rates.values()) else FAILS, evidence, 1)


SOUND = {  # metric, in table units -> what it has to be, its name
    "BLEU": (lambda value: value > 60, "BLEU"),
    "share_at_cap": (lambda value: value <= 1, "texts that do not end (%)"),
    "slot_error_rate": (lambda value: value < 5, "slot errors (%)"),
}
RANKS_SEARCHED = ("lora-all-r1", "lora-all-r8", "lora-all-r64")


TOP = ("top2", "top3")  # about the paper's share of a model of few layers, and of many
LORA_E2E, FULL_E2E = ("table3", "lora-r4"), ("table3", "full")
WEAK, REAL = "gpt2-mini", "smollm2-135m"
REGRET = "Schulman et al. 2025"  # LoRA Without Regret, https://thinkingmachines.ai/blog/lora/
OWN_PENALTIES = no_worse(
    "LoRA r=4 minus full, own penalties", ("decoding", "lora-r4/chosen-penalty"), ("decoding", "full/chosen-penalty")
)
UNPENALISED = no_worse("LoRA r=4 minus full", LORA_E2E, FULL_E2E, "BLEU_unpenalised")
CLAIMS = (
    Claim("few-parameters", "Section 4.2", "LoRA trains less than one percent of the parameters.",
          few_parameters, "table3"),
    Claim("e2e-matches", "Table 3", "On E2E, LoRA r=4 is no worse than full fine-tuning.",
          no_worse("LoRA r=4 minus full", LORA_E2E, FULL_E2E), "table3"),
    Claim("e2e-dev-loss", "this project", "On E2E, LoRA on query and value reaches the dev loss of full fine-tuning.",
          same_dev_loss("full", "full"), "learning-rate"),
    Claim("top2-matches", "beyond the paper", "On E2E, training the top layers is no worse than training all.",
          no_worse("top layers minus full", ("table3", TOP), FULL_E2E), "table3"),
    Claim("e2e-top2", "Table 3", "On E2E, LoRA r=4 is better than training the top layers.",
          better("LoRA r=4 minus top layers", LORA_E2E, ("table3", TOP)), "table3"),
    Claim("e2e-adapter-h", "Table 3", "On E2E, LoRA r=4 is better than Adapter H with more parameters.",
          better("LoRA r=4 minus Adapter H", LORA_E2E, ("table3", "adapter-h")), "table3"),
    Claim("e2e-adapters", "Table 3", "On E2E, LoRA r=4 is better than an adapter layer of the same size.",
          better("LoRA r=4 minus Adapter L", LORA_E2E, ("table3", "adapter-l")), "table3"),
    Claim("adapters-dev-loss", "this project", "On E2E, LoRA reaches the dev loss of that adapter layer.",
          same_dev_loss("adapter-l", "Adapter L"), "learning-rate"),
    Claim("e2e-prefix", "Table 3", "On E2E, LoRA r=4 is better than trained prefixes (PreLayer) of the same size.",
          better("LoRA r=4 minus PreLayer", LORA_E2E, ("table3", "prelayer")), "table3"),
    Claim("e2e-rank", "Table 18", "On E2E, rank 4 is no worse than rank 8.",
          no_worse("r=4 minus r=8", LORA_E2E, ("table3", "lora-r8")), "table3"),
    Claim("glue-matches", "Table 2", "On GLUE, LoRA r=8 is on average no worse than full fine-tuning.",
          glue_average("paper"), "table2"),
    Claim("glue-held-out", "this project", "With the epoch chosen on held-out rows, too, LoRA r=8 is no worse on GLUE.",
          glue_average("held-out"), "table2"),
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
    Claim("mistakes-outweigh", "this project", "On E2E, a missing end token costs more BLEU than LoRA does.",
          mistake_outweighs, "pitfalls"),
    Claim("wins-by-length", "this project", "On E2E, a mistake that raises BLEU only makes the texts longer.",
          wins_by_length, "pitfalls"),
    Claim("adaptive-rank", "beyond the paper", "On E2E, an adaptive rank, 8 on average, is no worse than rank 8.",
          no_worse("adaptive minus r=8", ("rank-over-time", "adaptive"), ("table3", "lora-r8")), "rank-over-time"),
    Claim("full-is-sound", "this project",
          "Full fine-tuning of SmolLM2-135M is sound: BLEU above 60, 99% of texts end, slot errors below 5%.",
          full_is_sound, "table3", REAL),
    Claim("real-matches", "Table 3", "On SmolLM2-135M, LoRA r=4 is no worse than full fine-tuning on E2E.",
          no_worse("LoRA r=4 minus full", LORA_E2E, FULL_E2E), "table3", REAL),
    Claim("unpenalised-weak", "this project",
          "On gpt2-mini, LoRA r=4 is no worse than full fine-tuning without BLEU's brevity penalty.",
          UNPENALISED, "table3", WEAK),
    Claim("unpenalised-real", "this project",
          "On SmolLM2-135M, LoRA r=4 is no worse than full fine-tuning without BLEU's brevity penalty.",
          UNPENALISED, "table3", REAL),
    Claim("length-weak", "this project",
          "On gpt2-mini, LoRA r=4 is no worse than full, each at its own length penalty.",
          OWN_PENALTIES, "decoding", WEAK),
    Claim("length-real", "this project",
          "On SmolLM2-135M, LoRA r=4 is no worse than full, each at its own length penalty.",
          OWN_PENALTIES, "decoding", REAL),
    Claim("all-matrices-loss", REGRET, "With pairs on all matrices, LoRA r=8 reaches the dev loss of full fine-tuning.",
          same_dev_loss("full", "full", "lora-all-r8", "LoRA r=8, all matrices"), "learning-rate", REAL),
    Claim("tenfold-rate", REGRET, "LoRA's best learning rate is about ten times full fine-tuning's.",
          tenfold_rate, "learning-rate", REAL),
    Claim("rate-by-rank", REGRET, "LoRA's best learning rate hardly depends on the rank.",
          rate_by_rank, "learning-rate", REAL),
    Claim("same-first-direction", "Figure 3", "The first directions that A learns at rank 8 and at rank 64 are alike.",
          first_direction, "table3", REAL),
    Claim("seeds-share", "Figure 4", "Two seeds learn more directions in common than random matrices have.",
          seeds_share, "table3", REAL),
    Claim("amplifies-new", "Table 7", "LoRA r=8 amplifies directions that W has but does not emphasise.",
          amplifies_new, "table3", REAL),
)  # fmt: skip
