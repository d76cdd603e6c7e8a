"""Claims as predicates over the summary: on made-up rows whose verdicts can be told at a glance."""

from __future__ import annotations

import pandas as pd
import pytest

import files
from analysis import claims, comparisons
from analysis.claims import CLAIMS, judged
from analysis.comparisons import FAILS, HOLDS, MISSING, OPEN, compared, differences
from analysis.summary import COLUMNS, read_summary
from experiments.catalogue import EXPERIMENTS
from synthetic_summary import line, search

LORA, FULL = "table3/smollm2-135m/lora-r4", "table3/smollm2-135m/full"


def verdict(name, *lines, scale="cpu"):
    return judged(pd.DataFrame(lines, columns=list(COLUMNS)))[name, scale].verdict


def test_nothing_measured_leaves_every_claim_open_at_both_scales():
    found = judged(pd.DataFrame(columns=list(COLUMNS)))
    assert len(found) == 2 * len(CLAIMS)
    assert {finding.verdict for finding in found.values()} == {MISSING}


@pytest.mark.parametrize(
    ("lora", "expected"),
    [
        ("60.1 60.2 60.0", HOLDS),  # equivalent
        ("64.0 64.1 64.2", HOLDS),  # better
        ("55.0 55.2 55.1", FAILS),
        ("60.0 62.0 56.0", OPEN),  # the interval is too wide
        ("59.0", OPEN),  # one seed, near
        ("54.0", FAILS),  # one seed, six margins behind
        ("66.0", HOLDS),
    ],
)
def test_parity_holds_if_lora_is_equivalent_or_better_and_one_seed_decides_only_what_is_far_apart(lora, expected):
    full = " ".join(["60.0", "60.1", "60.2"][: len(lora.split())])
    assert verdict("e2e-matches", line(LORA, lora), line(FULL, full)) == expected


def test_what_has_to_be_better_does_not_hold_when_it_is_only_as_good():
    adapter = line("table3/smollm2-135m/adapter-l", "60.0 60.1 60.2")
    assert verdict("e2e-adapters", line(LORA, "60.1 60.2 60.1"), adapter) == FAILS
    assert verdict("e2e-adapters", line(LORA, "63.1 63.2 63.1"), adapter) == HOLDS


def test_five_margins_are_not_far_and_more_are():
    assert compared([-5.0], 1.0) == "one seed only"
    assert compared([-5.1], 1.0) == "worse"
    assert compared([-5.1], 1.0, higher_is_better=False) == "better"


def test_differences_are_paired_by_seed_and_averaged_over_the_tasks_that_both_have():
    ours = {"mrpc": {0: 80.0, 1: 82.0, 2: 99.0}, "rte": {0: 60.0, 1: 61.0}, "cola": {0: 1.0}}
    theirs = {"mrpc": {0: 79.0, 1: 80.0}, "rte": {0: 63.0, 1: 61.0}}
    assert differences(ours, theirs) == ([-1.0, 1.0], ["mrpc", "rte"])
    assert differences(ours, theirs | {"cola": {0: 2.0}}) == ([-1.0, 1.0], ["mrpc", "rte"])  # it has one seed, not two
    assert differences({"mrpc": {0: 80.0}, "rte": {1: 60.0}}, {"mrpc": {0: 79.0}, "rte": {1: 61.0}})[1] == ["mrpc"]
    assert differences(ours, {"cola": {5: 1.0}}) == ([], [])


def test_an_average_over_glue_is_open_until_half_of_the_tasks_are_there_and_names_them():
    def table2(*tasks, claim="glue-matches"):
        rows = [("lora-r8", "paper", "80.0 80.1"), ("lora-r8", "held-out", "70.0 70.1"),
                ("full", "paper", "79.9 80.1"), ("full", "held-out", "75.0 75.1")]  # fmt: skip
        lines = [line(f"table2/minilm/{t}/{row}", each_seed, "accuracy", task=t, rule=rule,
                      reference=f"table2/minilm/{t}/full") for t in tasks for row, rule, each_seed in rows]  # fmt: skip
        return judged(pd.DataFrame(lines, columns=list(COLUMNS)))[claim, "cpu"]

    assert table2("mrpc", "rte", "sst2").verdict == OPEN
    one = "LoRA r=8 minus full: +0.05 points [-0.27, +0.37], on MRPC; too few tasks to decide"
    assert table2("mrpc").evidence == one
    whole = table2("mrpc", "rte", "sst2", "cola")
    assert whole.verdict == HOLDS and whole.evidence.endswith(
        " [-0.27, +0.37], mean of 4 of 8 tasks: MRPC, RTE, SST-2, CoLA"
    )
    held_out = table2("mrpc", "rte", "sst2", "cola", claim="glue-held-out")
    assert held_out.verdict == FAILS and held_out.evidence.startswith("LoRA r=8 minus full: -5.00 points")


def test_another_scale_model_variant_or_an_empty_row_is_no_evidence():
    full = line(FULL, "60.0 60.1")
    for other in ({"scale": "quick"}, {"model": "gpt2-large"}, {"variant": "official-code"}, {"n": "0"}):
        assert verdict("e2e-matches", line(LORA, "60.0 60.1") | other, full) == MISSING
    assert verdict("e2e-matches", line(LORA, "60.0 60.1"), full) == HOLDS


def test_cpu_and_paper_are_judged_apart():
    cpu = [line(LORA, "50.0 50.1"), line(FULL, "60.0 60.1")]
    paper = [
        line("table3/gpt2-medium/lora-r4", "69.0 69.1", scale="paper"),
        line("table3/gpt2-medium/full", "69.1 69.0", scale="paper"),
    ]
    found = judged(pd.DataFrame(cpu + paper))
    assert (found["e2e-matches", "cpu"].verdict, found["e2e-matches", "paper"].verdict) == (FAILS, HOLDS)


@pytest.mark.parametrize(
    ("lora", "higher", "inside", "reaches"),
    [
        ({"0.001": "1.9", "0.004": "1.80", "0.008": "1.9"}, HOLDS, HOLDS, FAILS),
        ({"0.001": "1.9", "0.004": "1.31"}, HOLDS, FAILS, OPEN),
        ({"0.001": "1.1", "0.004": "1.2"}, FAILS, FAILS, HOLDS),
    ],
)
def test_the_search_of_learning_rates_tells_the_higher_rate_the_grids_ends_and_the_loss(lora, higher, inside, reaches):
    full = {"0.0005": "1.4", "0.001": "1.3", "0.002": "1.35"}
    found = judged(pd.DataFrame(search({"lora": lora, "full": full})))
    names = ("higher-rate", "inside-grid", "e2e-dev-loss")
    assert tuple(found[name, "cpu"].verdict for name in names) == (higher, inside, reaches)


def test_a_search_that_has_only_begun_is_no_grid_with_its_best_at_the_end():
    rates = {row: {"0.001": "1.5", "0.002": "1.2", "0.004": "1.4"} for row in ("lora", "full")}
    assert verdict("inside-grid", *search(rates | {"adapter-h": {"0.002": "1.3"}})) == HOLDS
    assert verdict("inside-grid", *search(rates | {"adapter-h": rates["lora"] | {"0.008": "1.1"}})) == FAILS


def test_one_percent_of_the_parameters_is_not_less_than_one_percent():
    full = line(FULL, "60", trainable="100000")
    assert verdict("few-parameters", line(LORA, "60", trainable="999"), full) == HOLDS
    assert verdict("few-parameters", line(LORA, "60", trainable="1000"), full) == FAILS


def test_evidence_is_the_difference_as_printed_with_its_interval_if_it_has_one():
    several = judged(pd.DataFrame([line(LORA, "60.5 60.7"), line(FULL, "60.0 60.1")]))["e2e-matches", "cpu"]
    assert several.evidence == "LoRA r=4 minus full: +0.55 BLEU [+0.23, +0.87]" and several.n == 2
    one = judged(pd.DataFrame([line(LORA, "60.5"), line(FULL, "60.0")]))["e2e-matches", "cpu"]
    assert one.evidence == "LoRA r=4 minus full: +0.50 BLEU"


def test_every_row_that_a_claim_compares_is_declared_on_its_model(monkeypatch):
    """A claim about a row that nobody declares would stay unmeasured for ever."""
    asked = set()

    def rows(summary, table, row, metric="", rule=""):
        asked.add((table, row))
        return pd.DataFrame(columns=list(COLUMNS))

    monkeypatch.setattr(comparisons, "rows", rows)
    everything = set()
    for claim in CLAIMS:
        asked.clear()
        claim.judge(pd.DataFrame(columns=list(COLUMNS)))
        everything |= asked
        bases = {"cpu": (claim.base,)} if claim.base else claims.JUDGED_BASES
        for table, row in asked:
            ends = tuple(f"/{name}" for name in ((row,) if isinstance(row, str) else row))
            rows_of_name = [e for e in EXPERIMENTS.values() if e.table == table and e.name.endswith(ends)]
            for scale, models in bases.items():
                assert any(e.settings.model in models for e in rows_of_name if e.scale == scale), (table, row, scale)
    assert {("table3", "lora-r4"), ("decoding", "full/chosen-penalty")} <= everything


def test_without_a_summary_the_command_that_makes_it_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    with pytest.raises(FileNotFoundError, match="`make summary` makes it"):
        read_summary()


@pytest.mark.parametrize(("unpenalised", "expected"), [("69.0", HOLDS), ("71.0", FAILS)])
def test_a_mistake_that_raises_bleu_wins_by_length_if_it_is_behind_without_the_penalty(unpenalised, expected):
    rows = {"correct": ("60.0", "70.0"), "padded": ("61.0", unpenalised), "greedy": ("50.0", "75.0")}

    def lines_of(seeds):
        return [
            line(f"pitfalls/gpt2-mini/{row}", " ".join([score] * seeds), metric)
            for row, scores in rows.items()
            for metric, score in zip(("BLEU", "BLEU_unpenalised"), scores, strict=True)
        ]

    lines = lines_of(2)
    assert verdict("wins-by-length", *lines) == expected
    assert verdict("wins-by-length", *lines_of(1)) == OPEN
    assert verdict("wins-by-length", *lines[:2]) == verdict("wins-by-length", *lines[2:]) == MISSING
    assert verdict("wins-by-length", *lines[:2], *lines[4:]) == HOLDS  # none raises it
    assert verdict("wins-by-length", *lines[:3]) == MISSING  # a row whose length is not known tells nothing


@pytest.mark.parametrize(
    ("meteor", "cider", "expected", "told"),
    [
        ("40.0 40.1", "2.30 2.31", HOLDS, "METEOR +0.00"),
        ("37.0 37.1", "2.30 2.31", FAILS, "METEOR -3.00 [-3.00, -3.00] (worse)"),
        ("40.0 40.1", "2.20 2.21", FAILS, "CIDEr -0.1000 [-0.1000, -0.1000] (worse)"),  # a margin of its own
        ("36.0 44.1", "2.30 2.31", OPEN, "METEOR +0.00"),
    ],
)
def test_five_metrics_are_each_judged_by_their_own_margin_and_one_that_is_worse_decides(meteor, cider, expected, told):
    full = {
        "BLEU": "60.0 60.1",
        "NIST": "8.00 8.01",
        "METEOR": "40.0 40.1",
        "ROUGE_L": "60.0 60.1",
        "CIDEr": "2.30 2.31",
    }
    lines = [line(FULL, score, metric) for metric, score in full.items()]
    lines += [line(LORA, score, metric) for metric, score in (full | {"METEOR": meteor, "CIDEr": cider}).items()]
    found = judged(pd.DataFrame(lines, columns=list(COLUMNS)))["e2e-metrics", "cpu"]
    assert (found.verdict, found.n) == (expected, 2) and told in found.evidence
    assert verdict("e2e-metrics", *lines[:-1]) == MISSING


@pytest.mark.parametrize(
    ("bleu", "at_cap", "errors", "expected"),
    [
        ("66", "0.5", "4.9", HOLDS),
        ("59", "0.5", "4.9", FAILS),
        ("66", "1.5", "4.9", FAILS),
        ("66", "0.5", "5.1", FAILS),
    ],
)
def test_full_fine_tuning_is_sound_if_each_of_three_numbers_is_in_its_band(bleu, at_cap, errors, expected):
    lines = [line(FULL, bleu), line(FULL, at_cap, "share_at_cap")]
    assert verdict("full-is-sound", *lines) == MISSING
    assert verdict("full-is-sound", *lines, line(FULL, errors, "slot_error_rate")) == expected


def searched(full: str, **ranks: str) -> list[dict]:
    """Lines of a search of SmolLM2's rates from 1e-4 on, doubling: dev losses by row."""
    lines = []
    for row, losses in {"full": full, **{f"lora-all-{rank}": losses for rank, losses in ranks.items()}}.items():
        for step, loss in enumerate(losses.split()):
            rate = f"{1e-4 * 2**step:g}"
            name = f"learning-rate/smollm2-135m/{row}/{rate}"
            lines.append(line(name, loss, "dev_loss", learning_rate=rate))
    return lines


@pytest.mark.parametrize(
    ("r8", "expected"),
    [
        ("9 9 9 9 2 3", HOLDS),  # 1.6e-3 over 2e-4: 8 times
        ("9 9 9 9 9 2 3", HOLDS),  # 16 times
        ("9 9 9 2 3 9", FAILS),  # 4 times
        ("9 9 9 9 9 9 2 3", FAILS),  # 32 times
        ("9 9 9 9 9 2", MISSING),  # the best is the highest tried: a higher one may be better
    ],
)
def test_loras_best_rate_is_about_ten_times_fulls_within_what_a_grid_of_doublings_tells(r8, expected):
    assert verdict("tenfold-rate", *searched("9 2 3", r8=r8)) == expected
    assert verdict("tenfold-rate", *searched("9 3 2", r8=r8)) == MISSING


@pytest.mark.parametrize(
    ("r64", "expected"), [("9 9 2 3", HOLDS), ("9 2 3 9", HOLDS), ("9 9 9 9 2 3", FAILS), ("9 9 9 2", MISSING)]
)
def test_the_best_rate_hardly_depends_on_the_rank_if_the_ranks_differ_by_one_step_of_the_grid(r64, expected):
    ranks = {"r1": "9 9 2 3", "r8": "9 9 2 3"}
    assert verdict("rate-by-rank", *searched("9 2 3", **ranks, r64=r64)) == expected
    assert verdict("rate-by-rank", *searched("9 2 3", **ranks)) == MISSING


def test_a_claim_about_one_base_is_judged_on_it_alone():
    weak, real = (
        [line(f"decoding/{base}/{row}/chosen-penalty", score) for row, score in scores.items()]
        for base, scores in (
            ("gpt2-mini", {"lora-r4": "50", "full": "60"}), ("smollm2-135m", {"lora-r4": "70", "full": "60"}),
        )
    )  # fmt: skip
    assert (verdict("weak-length", *weak, *real), verdict("length", *weak, *real)) == (FAILS, HOLDS)
    assert (verdict("weak-length", *real), verdict("length", *weak)) == (MISSING, MISSING)


def test_a_claim_that_does_not_hold_has_a_sentence_that_does():
    [claim] = [claim for claim in CLAIMS if claim.name == "glue-matches"]
    assert [claim.sentence(verdict) for verdict in (HOLDS, FAILS, OPEN)] == [
        "On GLUE, LoRA r=8 is on average no worse than full fine-tuning.",
        "On GLUE, LoRA r=8 is on average worse than full fine-tuning.",
        "Our runs do not decide whether, on GLUE, LoRA r=8 is on average no worse than full fine-tuning.",
    ]


@pytest.mark.parametrize("claim", CLAIMS, ids=lambda claim: claim.name)
def test_no_sentence_says_what_is_not_decided(claim):
    assert all(claim.sentence(verdict) != claim.says for verdict in (FAILS, OPEN, MISSING))


def test_names_are_unique_and_their_tables_declared():
    assert len({claim.name for claim in CLAIMS}) == len(CLAIMS)
    assert {claim.table for claim in CLAIMS} <= {e.table for e in EXPERIMENTS.values()}


@pytest.mark.parametrize(("untrained_end", "expected"), [("40.0", HOLDS), ("57.0", FAILS), ("52.0", OPEN)])
def test_a_missing_end_token_outweighs_the_methods_if_it_costs_more_than_lora_lacks_to_full(untrained_end, expected):
    part = "pitfalls/gpt2-mini"
    mistakes = [line(f"{part}/untrained-end", untrained_end), line(f"{part}/greedy", "10.0")]  # a worse one counts not
    right = [line(f"{part}/correct", "60.0"), line(f"{part}/full-correct", "70.0")]
    assert verdict("mistakes-outweigh", *mistakes, *right) == expected
    assert verdict("mistakes-outweigh", *mistakes) == verdict("mistakes-outweigh", *right) == MISSING


@pytest.mark.parametrize(
    ("origin", "expected"),
    [
        ("base=aa test=11 train=22", HOLDS),
        ("base=aa dev=33", HOLDS),  # of no split that both have
        ("", HOLDS),  # older than fingerprints
        ("base=bb test=11 train=22", MISSING),
        ("base=aa test=99 train=22", MISSING),
    ],
)
def test_rows_of_another_base_or_of_other_rows_are_no_evidence(origin, expected):
    lora = line(LORA, "60.1 60.2 60.0", origin="base=aa test=11 train=22")
    assert verdict("e2e-matches", lora, line(FULL, "60.0 60.1 60.2", origin=origin)) == expected


@pytest.mark.parametrize(("origin", "expected"), [("base=aa", HOLDS), ("base=bb", MISSING)])
def test_a_mistake_on_another_base_is_no_evidence(origin, expected):
    runs = {"correct": "60.0 60.0", "untrained-end": "10.0 10.1", "full-correct": "62.0 62.0"}
    lines = [
        line(f"pitfalls/gpt2-mini/{row}", bleu, origin="base=aa" if row == "correct" else origin)
        for row, bleu in runs.items()
    ]
    assert verdict("mistakes-outweigh", *lines) == expected
