"""What the paper claims, each as a predicate over `results/summary.csv`: it holds here, does not, or is open.

    judged(read_summary())["e2e-matches", "cpu"]    # Finding(verdict="does not hold", evidence="...", n=1)

The report, the poster and their tests read nothing else about the outcome. Each sentence in them names a
claim and the verdicts under which it is true (`says` of report/parts.typ): a stale sentence does not compile.
`comparisons.py` says how two rows are compared; `judges.py` has the judges of claims that ask something else.
"""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from analysis import judges
from analysis.comparisons import (
    FAILS,
    HOLDS,
    OPEN,
    Finding,
    Judge,
    better,
    glue_average,
    no_worse,
    no_worse_by_each,
    same_dev_loss,
)
from analysis.subspace_claims import amplifies_new, first_direction, seeds_share

LEADING, WEAK = "smollm2-135m", "gpt2-mini"  # LEADING comes first wherever several bases are shown
JUDGED_SCALES = ("cpu", "paper")
JUDGED_BASES = {"cpu": (LEADING, "minilm"), "paper": ("gpt2-medium", "roberta-base")}  # of E2E, of GLUE
GLUE_TABLES = ("table2", "table5", "table6")
WEAK_TABLES = ("rank-over-time", "variants", "pitfalls")  # measured at `cpu` on WEAK alone so far, and judged on it


@dataclass(frozen=True)
class Claim:
    """A statement of the paper or of this project, and the predicate that judges it at one scale."""

    name: str
    source: str
    says: str
    judge: Judge
    table: str  # whose sweep measures it
    base: str | None = None  # the model of scale `cpu` that it is about, if not the table's
    else_says: str = ""  # what is true where it does not hold, for those that pages and poster lead with

    def sentence(self, verdict: str) -> str:
        """What the verdict says of it, as a sentence that is true."""
        if verdict == FAILS and self.else_says:
            return self.else_says
        if verdict == OPEN and self.says.startswith("On "):
            return self.says.replace("On ", "Our runs do not decide whether, on ", 1)
        return self.says if verdict == HOLDS else f"{verdict.capitalize()}: {self.says}"


def judged(summary: pd.DataFrame) -> dict[tuple[str, str], Finding]:
    """{(name of a claim, scale): what the summary says about it}."""
    return {
        (claim.name, scale): claim.judge(_judged_on(summary, scale, base_of(claim, scale)))
        for claim in CLAIMS
        for scale in JUDGED_SCALES
    }


def bases_of(table: str, scale: str) -> tuple[str, str]:
    """The models on which the claims about a table are judged: of E2E, of GLUE."""
    e2e, glue = JUDGED_BASES[scale]
    return (WEAK if scale == "cpu" and table in WEAK_TABLES else e2e), glue


def base_of(claim: Claim, scale: str) -> str:
    """The model that a claim is judged on."""
    return claim.base or bases_of(claim.table, scale)[claim.table in GLUE_TABLES]


def _judged_on(summary: pd.DataFrame, scale: str, base: str) -> pd.DataFrame:
    chosen = (summary["scale"] == scale) & (summary["variant"] == "paper") & (summary["model"] == base)
    return summary[chosen & (summary["n"] != "0")]


TOP = ("top2", "top3")  # about the paper's share of a model of few layers, and of many
LORA_E2E, FULL_E2E, ALL_E2E = ("table3", "lora-r4"), ("table3", "full"), ("table3", "lora-all-r8")
ALL_NAME = "LoRA r=8, all matrices, minus full"
FIVE = ("BLEU", "NIST", "METEOR", "ROUGE_L", "CIDEr")  # the metrics of the paper's Table 3
REGRET = "Schulman et al. 2025"  # LoRA Without Regret, https://thinkingmachines.ai/blog/lora/
MATCHES = no_worse("LoRA r=4 minus full", LORA_E2E, FULL_E2E)
UNPENALISED = no_worse("LoRA r=4 minus full", LORA_E2E, FULL_E2E, "BLEU_unpenalised")
OWN_PENALTIES = no_worse(
    "LoRA r=4 minus full, own penalties", ("decoding", "lora-r4/chosen-penalty"), ("decoding", "full/chosen-penalty")
)
SMALLER_RANK = no_worse("r=4 minus r=8", LORA_E2E, ("table3", "lora-r8"))
CLAIMS = (
    Claim("few-parameters", "Section 4.2",
          "On E2E, LoRA r=4 on query and value trains less than one percent of the parameters.",
          judges.few_parameters, "table3",
          else_says="On E2E, LoRA r=4 on query and value trains one percent of the parameters or more."),
    Claim("full-is-sound", "this project",
          "Full fine-tuning on E2E is sound, on average: BLEU above 60, 99% of texts end, slot errors below 5%.",
          judges.full_is_sound, "table3"),
    Claim("e2e-matches", "Table 3", "On E2E, LoRA r=4 is no worse than full fine-tuning.", MATCHES, "table3"),
    Claim("e2e-metrics", "Table 3", "On E2E, LoRA r=4 is no worse than full fine-tuning by each of five metrics.",
          no_worse_by_each("LoRA r=4 minus full", LORA_E2E, FULL_E2E, FIVE), "table3",
          else_says="On E2E, LoRA r=4 is worse than full fine-tuning by at least one of five metrics."),
    Claim("unpenalised", "this project",
          "On E2E, LoRA r=4 is no worse than full fine-tuning without BLEU's brevity penalty.", UNPENALISED, "table3"),
    Claim("length", "this project",
          "On E2E, LoRA r=4 is no worse than full fine-tuning, each at its own length penalty.",
          OWN_PENALTIES, "decoding", LEADING),
    Claim("e2e-rank", "Table 18", "On E2E, rank 4 is no worse than rank 8.", SMALLER_RANK, "table3"),
    Claim("all-matrices-bleu", REGRET, "On E2E, LoRA r=8 on all matrices is no worse than full fine-tuning.",
          no_worse(ALL_NAME, ALL_E2E, FULL_E2E), "table3", LEADING,
          "On E2E, LoRA r=8 on all matrices is worse than full fine-tuning."),
    Claim("all-matrices-metrics", REGRET,
          "On E2E, LoRA r=8 on all matrices is no worse than full fine-tuning by each of five metrics.",
          no_worse_by_each(ALL_NAME, ALL_E2E, FULL_E2E, FIVE), "table3", LEADING),
    Claim("e2e-dev-loss", "this project", "On E2E, LoRA on query and value reaches the dev loss of full fine-tuning.",
          same_dev_loss("full", "full"), "learning-rate"),
    Claim("all-matrices-loss", REGRET, "With pairs on all matrices, LoRA r=8 reaches the dev loss of full fine-tuning.",
          same_dev_loss("full", "full", "lora-all-r8", "LoRA r=8, all matrices"), "learning-rate", LEADING),
    Claim("top-matches", "beyond the paper", "On E2E, training the top layers is no worse than training all.",
          no_worse("top layers minus full", ("table3", TOP), FULL_E2E), "table3"),
    Claim("e2e-top", "Table 3", "On E2E, LoRA r=4 is better than training the top layers.",
          better("LoRA r=4 minus top layers", LORA_E2E, ("table3", TOP)), "table3"),
    Claim("e2e-adapter-h", "Table 3", "On E2E, LoRA r=4 is better than Adapter H with more parameters.",
          better("LoRA r=4 minus Adapter H", LORA_E2E, ("table3", "adapter-h")), "table3"),
    Claim("e2e-adapters", "Table 3", "On E2E, LoRA r=4 is better than an adapter layer of the same size.",
          better("LoRA r=4 minus Adapter L", LORA_E2E, ("table3", "adapter-l")), "table3"),
    Claim("adapters-dev-loss", "this project", "On E2E, LoRA reaches the dev loss of that adapter layer.",
          same_dev_loss("adapter-l", "Adapter L"), "learning-rate"),
    Claim("e2e-prefix", "Table 3", "On E2E, LoRA r=4 is better than trained prefixes (PreLayer) of the same size.",
          better("LoRA r=4 minus PreLayer", LORA_E2E, ("table3", "prelayer")), "table3"),
    Claim("weak-matches", "this project", "On E2E with a weak base, LoRA r=4 is no worse than full fine-tuning.",
          MATCHES, "table3", WEAK),
    Claim("weak-dev-loss", "this project", "With a weak base, LoRA reaches the dev loss of full fine-tuning.",
          same_dev_loss("full", "full"), "learning-rate", WEAK),
    Claim("weak-unpenalised", "this project",
          "With a weak base, LoRA r=4 is no worse than full fine-tuning without BLEU's brevity penalty.",
          UNPENALISED, "table3", WEAK),
    Claim("weak-length", "this project",
          "With a weak base, LoRA r=4 is no worse than full fine-tuning, each at its own length penalty.",
          OWN_PENALTIES, "decoding", WEAK),
    Claim("weak-rank", "Table 18", "With a weak base, rank 4 is no worse than rank 8.", SMALLER_RANK, "table3", WEAK),
    Claim("glue-matches", "Table 2", "On GLUE, LoRA r=8 is on average no worse than full fine-tuning.",
          glue_average("paper"), "table2",
          else_says="On GLUE, LoRA r=8 is on average worse than full fine-tuning."),
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
          judges.inside_grid, "learning-rate"),
    Claim("higher-rate", "Table 12", "In a short search, LoRA's best learning rate is above full fine-tuning's.",
          judges.higher_rate, "learning-rate",
          else_says="In a short search, LoRA's best learning rate is not above full fine-tuning's."),
    Claim("tenfold-rate", REGRET, "LoRA's best learning rate is about ten times full fine-tuning's.",
          judges.tenfold_rate, "learning-rate", LEADING),
    Claim("rate-by-rank", REGRET, "LoRA's best learning rate hardly depends on the rank.",
          judges.rate_by_rank, "learning-rate", LEADING),
    Claim("growing-rank", "beyond the paper",
          "On E2E, a rank that grows to 8 in stages of fixed length, all trained on, is no worse than rank 8.",
          no_worse("stages minus r=8", ("rank-over-time", "sequential-fixed-unfrozen"), ("table3", "lora-r8")),
          "rank-over-time"),
    Claim("adaptive-rank", "beyond the paper", "On E2E, an adaptive rank, 8 on average, is no worse than rank 8.",
          no_worse("adaptive minus r=8", ("rank-over-time", "adaptive"), ("table3", "lora-r8")), "rank-over-time"),
    Claim("mistakes-outweigh", "this project",
          "On E2E, training without a loss on the end token costs more BLEU than LoRA in place of full fine-tuning.",
          judges.mistake_outweighs, "pitfalls",
          else_says="On E2E, training without a loss on the end token costs no more BLEU than the choice of method."),
    Claim("wins-by-length", "this project", "On E2E, a mistake that raises BLEU only makes the texts longer.",
          judges.wins_by_length, "pitfalls"),
    Claim("same-first-direction", "Figure 3", "The first directions that A learns at rank 8 and at rank 64 are alike.",
          first_direction, "table3", LEADING),
    Claim("seeds-share", "Figure 4", "Two seeds learn more directions in common than random matrices have.",
          seeds_share, "table3", LEADING),
    Claim("amplifies-new", "Table 7", "LoRA r=8 amplifies directions that W has but does not emphasise.",
          amplifies_new, "table3", LEADING),
)  # fmt: skip
