"""Report, poster and pages: compiled from made-up summaries, and what makes them stop or go stale."""

from __future__ import annotations

import csv
import json
import math
import re
import shutil
from itertools import cycle

import pandas as pd
import pytest
from pypdf import PdfReader
from pypdf.generic import ContentStream

import files
from analysis import differences
from analysis.claims import CLAIMS, judged
from analysis.comparisons import FAILS, HOLDS, MISSING, OPEN
from analysis.summary import COLUMNS
from experiments.catalogue import find
from publish import efficiency, pages, report
from publish.report_tables import HOLE, report_rows, report_table
from synthetic_summary import everything, line

ROOT = files.ROOT
SOURCES = ("report/report.typ", "report/parts.typ", "poster/poster.typ")
LORA, FULL = "table3/smollm2-135m/lora-r4", "table3/smollm2-135m/full"


def frame(lines):
    return pd.DataFrame(lines, columns=list(COLUMNS))


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """The sources of the documents in a folder of their own, with a summary in which nothing is measured."""
    for folder in ("report", "poster"):
        kept = shutil.ignore_patterns("*.pdf", "*.svg", "facts.json")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=kept)
    for name in ("README.md", "CITATION.cff"):
        shutil.copy(ROOT / name, tmp_path)
    (tmp_path / "results").mkdir()
    frame([]).to_csv(tmp_path / "results" / "summary.csv", index=False)
    monkeypatch.setattr(files, "ROOT", tmp_path)
    monkeypatch.setattr(files, "RESULTS", tmp_path / "results")
    return tmp_path


def write_facts(tree, facts):
    (tree / report.FACTS).write_text(json.dumps(facts), encoding="utf-8")


def page_count(document):
    found = report.compile_document(document, format="svg")
    return len(found) if isinstance(found, list) else 1


def facts_without_figures(lines, folder):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(files, "RESULTS", folder)
        return report.facts(frame(lines))


@pytest.fixture(scope="module")
def nothing(tmp_path_factory):
    return facts_without_figures([], tmp_path_factory.mktemp("nothing"))


@pytest.fixture(scope="module")
def all_of_it(tmp_path_factory):
    return facts_without_figures(everything(), tmp_path_factory.mktemp("everything"))


@pytest.fixture(scope="module")
def both_scales(tmp_path_factory):
    return facts_without_figures(everything() + everything("paper"), tmp_path_factory.mktemp("both"))


@pytest.mark.parametrize("world", ["nothing", "all_of_it", "both_scales"])
def test_report_and_poster_stand_with_holes_and_full(tree, world, request):
    write_facts(tree, request.getfixturevalue(world))
    assert 4 <= page_count("report") <= 8
    assert page_count("poster") == 1


def test_report_and_poster_as_they_are_published_keep_to_their_pages():
    assert 4 <= page_count("report") <= 8
    assert page_count("poster") == 1


@pytest.mark.parametrize(
    "verdicts",
    [[HOLDS], [FAILS], [MISSING], [HOLDS, FAILS], [MISSING, HOLDS], [FAILS, MISSING, HOLDS]],
    ids=lambda verdicts: " and ".join(verdicts),
)
def test_the_documents_have_a_sentence_for_every_verdict_and_for_what_goes_together(tree, nothing, verdicts):
    changed = json.loads(json.dumps(nothing))
    for claim, verdict in zip(changed["claims"].values(), cycle(verdicts), strict=False):
        measured = verdict != MISSING
        claim["cpu"] |= {"verdict": verdict, "evidence": "so much" * measured, "n": 2 * measured}
    write_facts(tree, changed)
    for document in report.FITS:
        assert page_count(document)


def test_a_verdict_that_no_sentence_is_true_under_stops_the_compilation(tree, nothing):
    changed = json.loads(json.dumps(nothing))
    changed["claims"]["higher-rate"]["cpu"]["verdict"] = OPEN
    write_facts(tree, changed)
    with pytest.raises(RuntimeError, match="stale: the claim higher-rate at scale cpu undecided now"):
        report.compile_document("report")


def test_a_sentence_about_a_claim_that_is_not_made_stops_the_compilation(tree, nothing):
    write_facts(tree, nothing)
    path = tree / "report" / "report.typ"
    path.write_text(path.read_text(encoding="utf-8").replace('says("higher-rate"', 'says("wishful"'), encoding="utf-8")
    with pytest.raises(RuntimeError, match="wishful"):
        report.compile_document("report")


def typed_numbers(source):
    """Numbers in the text of a Typst file that could be results: with decimals, or of three digits and more."""
    text = re.sub(r"//.*|\"[^\"\n]*\"|`[^`]*`", "", source)
    text = re.sub(r"\d[\d.]*(?:pt|cm|mm|em|fr|%)|< [\d.]+ \*|/ 1000000", "", text)
    return re.findall(r"(?<![\w.,-])(?:\d{1,3}(?:,\d{3})+|\d+\.\d+|\d{3,})\b", text)


@pytest.mark.parametrize("source", SOURCES)
def test_no_result_is_typed_into_a_document(source):
    text = (ROOT / source).read_text(encoding="utf-8")
    assert typed_numbers(text) == []
    assert typed_numbers(text + "\nLoRA has 68.9 BLEU with 5,322,240 parameters, 67.") == ["68.9", "5,322,240"]


# what the facts say


def test_a_row_that_is_not_run_is_a_hole_and_a_table_says_how_many_are_run():
    run = report_rows(frame([line(LORA, "60.1 60.3", spread="0.14", verdict="no reference", trainable="16384")]))
    table = report_table(run, "table3", "cpu")
    assert (table["run"], table["of"]) == (1, 15)
    assert table["holes"][0] == "full fine-tuning"
    assert table["rows"][0][:4] == ["LoRA r=4", "16,384", "2", "60.20 ±0.14"]
    assert table["command"] == "python code/reproduce.py sweep table3 --scale cpu"


def test_a_full_table_has_no_hole(all_of_it):
    for name, at in all_of_it["tables"].items():
        assert at["cpu"]["run"] == at["cpu"]["of"] > 0, name
        assert all(HOLE not in row for row in at["cpu"]["rows"]) and not at["cpu"].get("holes"), name
        assert {len(row) for row in at["cpu"]["rows"]} == {len(at["cpu"]["columns"])}, name


def test_a_subset_is_marked_and_a_whole_task_is_not():
    names = [f"table2/minilm/{task}/full" for task in ("mrpc", "mnli")]
    run = [line(names[0], "80", "accuracy", task="mrpc", data="whole")]
    run += [line(names[1], "70", "accuracy", task="mnli", data="subset")]
    (row,) = [row for row in report_table(report_rows(frame(run)), "table2", "cpu")["rows"] if HOLE not in row]
    assert row[1:4] == ["70.00*", "–", "80.00"]


def test_mistakes_are_listed_by_what_they_cost_below_the_correct_run_those_of_scoring_last():
    part = "pitfalls/gpt2-mini"
    run = [line(f"{part}/correct", "60.1"), line(f"{part}/correct", "9.5", "training_minutes")]
    run += [line(f"{part}/correct", "1.5", "decoding_minutes")]
    run += [
        line(f"{part}/prompt-loss", "59.1", difference="-1.00"),
        line(f"{part}/greedy", "50.1", difference="-10.00"),
    ]
    run += [line(f"{part}/untrained-end", "58.1", difference="-2.00")]
    run += [line(f"{part}/padded", "60.1", difference=""), line(f"{part}/padded", "70.5", "training_minutes")]
    table = report_table(report_rows(frame(run)), "pitfalls", "cpu")
    assert [row[1:3] for row in table["rows"][:3]] == [["60.10", "9.5 + 1.5"], ["-2.00", ""], ["-1.00", ""]]
    assert table["rows"][-3][:2] == ["Scoring only: greedy decoding, no beams", "-10.00"]  # then two that are not run
    assert [row[1:3] for row in table["rows"] if row[0].startswith("Every batch padded")] == [["–", "70.5"]]
    assert (table["run"], table["of"]) == (5, 26)


def test_claims_are_in_the_facts_with_verdict_evidence_and_command():
    summary = frame([line(LORA, "54.0"), line(FULL, "60.0")])
    claim = report.facts(summary)["claims"]["e2e-matches"]
    assert claim["cpu"]["verdict"] == FAILS == judged(summary)["e2e-matches", "cpu"].verdict
    assert (claim["cpu"]["n"], claim["paper"]["verdict"]) == (1, MISSING)
    assert claim["paper"]["command"] == "python code/reproduce.py sweep table3 --scale paper"


def test_an_adapter_of_roberta_takes_its_parameters_and_its_heads_in_bytes(nothing):
    roberta = nothing["storage"][1]
    assert roberta["adapter"] == f"{4 * (294_912 + 592_130) / 1e6:.1f} MB"  # loralib's released file: 3.4 MiB
    assert roberta["whole"] == "499 MB"  # the poster of an earlier study: 500 MB


def test_the_papers_numbers_are_as_it_prints_them(nothing):
    lora = [row for row in nothing["paper"]["table3"]["rows"] if row[0] == "LoRA"]
    assert lora == [["LoRA", "0.35M", "70.4 ±0.1", "8.85 ±0.02", "46.8 ±0.2", "71.8 ±0.1", "2.53 ±0.02"]]


def test_costs_are_those_of_a_dry_run():
    from costs.paper_costs import row

    with open(files.DATA / "paper_costs.csv", encoding="utf-8", newline="") as file:
        costs = {line["experiment"]: line for line in csv.DictReader(file)}
    for name in ("table3/gpt2/lora-r4", "table2/roberta-base/mrpc/full"):
        assert costs[name] == row(find(name))


# differences from the paper


def test_a_difference_without_a_reason_and_a_reason_without_a_difference_are_refused(monkeypatch):
    lines = differences.read_table("differences.csv")
    one_less = [line for line in lines if (line["where"], line["setting"]) != ("e2e at cpu", "epochs")]
    declared = next(line for line in lines if not line["ours"])
    one_more = [*lines, declared | {"where": "e2e at cpu", "setting": "beams"}]
    real = differences.read_table
    for changed, message in (
        (one_less, r"none for \[\('e2e at cpu', 'epochs'\)\]"),
        (one_more, r"too many for .*beams"),
    ):
        monkeypatch.setattr(
            differences, "read_table", lambda name, c=changed: c if name == "differences.csv" else real(name)
        )
        with pytest.raises(ValueError, match=message):
            differences.rows()


def test_what_differs_is_read_from_the_declarations():
    found = {(row["where"], row["setting"]): (row["paper"], row["ours"]) for row in differences.rows()}
    assert found["e2e at every scale", "learning_rate"] == ("0.0002 (full)", "5e-5 (full)")
    assert found["e2e at cpu", "epochs"] == ("5", "1")
    assert found["glue at cpu", "epochs"] == ("3 to 80 (LoRA); 10 (full)", "1 to 6")
    assert found["glue at cpu", "data"] == ("all rows", "subsets of MNLI, QNLI and QQP")
    assert all(row["reason"] and row["effect"] for row in differences.rows())


@pytest.mark.parametrize("variant", ["paper", "official-code"])
def test_loras_settings_on_e2e_are_those_of_table_11_and_of_the_official_code(variant):
    name = "table3/gpt2-medium/lora-r4"
    settings = find(name if variant == "paper" else f"{name}/{variant}").settings
    for row in differences.read_table("gpt2_hyperparameters.csv"):
        if row[variant]:
            ours = getattr(settings, row["setting"])
            assert type(ours)(row[variant]) == ours, row["setting"]


# make documents


def test_making_the_documents_twice_gives_the_same_bytes_and_nothing_is_stale(tree):
    report.write_documents()
    made = [tree / "report/report.pdf", tree / "poster/poster.pdf", tree / "report/method.svg", tree / report.FACTS]
    before = [path.read_bytes() for path in made]
    report.write_documents()
    assert [path.read_bytes() for path in made] == before
    assert report.stale() == []
    write = {
        "report/report.typ": "report/report.pdf is not made from its sources",
        "poster/poster.typ": "poster/poster.pdf is not made from its sources",
        report.FACTS: "facts.json is not what the summary",
    }
    for name, message in write.items():
        path = tree / name
        text = path.read_text(encoding="utf-8")
        path.write_text(text.replace("LoRA", "LORA", 1), encoding="utf-8")
        assert any(message in said for said in report.stale())
        path.write_text(text, encoding="utf-8")
    for path in (*made[:3], tree / "report/method.typ"):
        content = path.read_bytes()
        path.write_bytes(
            content.replace(b"times", b"times.o", 1) if path.suffix == ".typ" else content[:-9] + b"123456789"
        )
        assert report.stale() == [
            f"{name} is not made from its sources: `make documents` makes it"
            for name in (["report/report.pdf", "poster/poster.pdf", "report/method.svg"] if path.suffix == ".typ"
                         else [str(path.relative_to(tree))])
        ]  # fmt: skip
        path.write_bytes(content)
    (tree / "report" / "report.pdf").unlink()
    assert "report/report.pdf is not made from its sources: `make documents` makes it" in report.stale()


def test_a_new_result_makes_the_documents_stale(tree):
    report.write_documents()
    frame([line(LORA, "54.0"), line(FULL, "60.0")]).to_csv(tree / "results" / "summary.csv", index=False)
    assert report.stale()[0] == f"{report.FACTS} is not what the summary and declarations give"


def test_without_a_summary_the_command_and_the_check_say_what_makes_it(tree):
    (tree / "results" / "summary.csv").unlink()
    assert "`make summary` makes it" in report.stale()[0]
    with pytest.raises(FileNotFoundError, match="`make summary` makes it"):
        report.write_documents()


# the pages on GitHub

PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in (*pages.PAGES, "code/README.md")}


def layout(page):
    """{path: comment} of the tree in a page: names below a folder are indented by two."""
    block = re.search(r"# Layout\n\n```\n(.*?)```", page, re.DOTALL).group(1)
    found, folder = {}, ""
    for entry in block.splitlines():
        indent, name, comment = re.match(r"( *)(\S+)\s*(.*)", entry).groups()
        folder = folder if indent else (name if name.endswith("/") else "")
        found[folder + name if indent else name] = comment
    return found


def test_the_layout_names_every_module_and_folder_and_nothing_that_is_not_there():
    named = layout(PAGES["code/README.md"])
    modules = {f"code/{path.name}" for path in (ROOT / "code").glob("*.py")}
    modules |= {f"code/{path.parent.name}/" for path in (ROOT / "code").glob("*/__init__.py")}
    assert modules <= named.keys()
    assert all((ROOT / name).exists() for name in named)
    assert all(named.values()), "every entry says what it is"


@pytest.mark.parametrize("name", PAGES)
def test_what_a_page_links_to_is_there_and_its_targets_are_in_the_makefile(name):
    for target in re.findall(r"\]\(([^)#:]+)\)", PAGES[name]):
        assert (ROOT / name).parent.joinpath(target).exists(), target
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    assert set(re.findall(r"\bmake ([a-z-]+)\b(?= |`|\n)", PAGES[name])) <= targets


def test_the_readme_is_read_in_five_minutes():
    assert len(PAGES["README.md"].split()) <= 1200


def test_the_pages_blocks_are_what_the_files_give(tmp_path, monkeypatch):
    for name, text in PAGES.items():
        assert name not in pages.PAGES or pages.page(name, text) == text
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    assert len(pages.speed_rows()) == len(pages.BENCHMARKS)
    assert all("not yet" in row[2] for row in pages.speed_rows())
    (tmp_path / "benchmark").mkdir()
    text = json.dumps({"measured": {"ours / theirs": 0.504, "seconds, ours": 2.0}, "threads": 2, "repetitions": 3})
    (tmp_path / "benchmark" / "step.json").write_text(text, encoding="utf-8")
    what, ratio, how = pages.speed_rows()[0]
    assert what == "LoRA step of GPT-2 small: ours / theirs"
    assert (ratio, how) == ("0.50", "2 threads, up to 3 repetitions")


@pytest.mark.parametrize(
    ("name", "quantity", "value", "found"),
    [
        ("latency", "batch 2, length 512: LoRA merged / plain", [1.01, 0.98, 1.03], "1.01 [0.98, 1.03] | holds"),
        ("latency", "batch 2, length 512: LoRA merged / plain", [1.05, 1.02, 1.08], "does not hold"),
        ("latency", "batch 2, length 512: LoRA merged / plain", [1.01, 0.9, 1.3], "1.30] | undecided"),
        ("training", "gpt2: full step / LoRA step", [1.3, 1.2, 1.4], "undecided"),
        ("memory", "full / LoRA r=4 (peak memory with the weights)", 1.5, "1.50 | does not hold"),
        ("adapters", "MB of an adapter, the numbers that were trained", 0.61, "0.61 | holds"),
        ("adapters", "full / LoRA r=4 (trained parameters)", 844.0, "844.00 | holds"),
        ("adapters", "ten models / one model and ten adapters (storage)", 9.8, "9.80 | holds"),
        ("adapters", "seconds to merge", 0.6, "0.60 | does not hold"),
        ("adapters", "milliseconds to switch", 4.2, "4.20 | holds"),
    ],
)
def test_a_claim_of_efficiency_is_judged_by_its_whole_interval(tmp_path, monkeypatch, name, quantity, value, found):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    assert efficiency.efficiency_block().count("not measured yet") == len(efficiency.CLAIMS)
    files.write_json(tmp_path / "benchmark" / f"{name}.json", {"measured": {quantity: value}})
    [line] = [line for line in efficiency.efficiency_block().splitlines() if quantity in line]
    assert found in line


@pytest.mark.parametrize("content", ['{"measured": {"gpt2', "{}"])
def test_a_damaged_benchmark_gives_no_verdict_and_is_named_beside_the_ratios(tmp_path, monkeypatch, content):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    (tmp_path / "benchmark").mkdir()
    (tmp_path / "benchmark" / "latency.json").write_text(content, encoding="utf-8")
    (tmp_path / "benchmark" / "training.json").write_text('{"measured": {"gpt2', encoding="utf-8")
    assert efficiency.efficiency_block().count("not measured yet") == len(efficiency.CLAIMS)
    assert any("training.json is damaged" in row[2] for row in pages.speed_rows())


def test_table_1_has_our_slow_downs_beside_the_papers(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    assert "Not measured yet" in efficiency.table1_block()
    sizes = ("batch 2, length 512", "batch 1, length 256", "batch 1, length 128")
    measured = {f"{size}: Adapter^H / plain": [1.1, 1.05, 1.2] for size in sizes}
    measured |= {f"{size}: LoRA unmerged / plain": [1.01, 1.0, 1.02] for size in sizes}
    files.write_json(tmp_path / "benchmark" / "latency.json", {"measured": measured})
    text = efficiency.table1_block()
    assert "| Adapter^H | batch 1, length 128 | +10.0% [+5.0, +20.0] | batch 1 x 128 | +30.3% |" in text
    assert "| LoRA unmerged | batch 2, length 512 | +1.0% [+0.0, +2.0] | batch 32 x 512 | – |" in text


def text_sizes(content, resources, reader, scale=1.0, where="page"):
    """(where, name of the font, size in points) of each piece of text; what is drawn within the page is a figure."""
    resources = content.get("/Resources", resources).get_object()
    stream = content.get_contents() if where == "page" else content
    outer, font, size, matrix, found = [], "", 0.0, 1.0, []
    for operands, operator in ContentStream(stream, reader).operations:
        if operator == b"q":
            outer.append(scale)
        elif operator == b"Q":
            scale = outer.pop()
        elif operator in (b"cm", b"Tm"):
            a, b, c, d = map(float, operands[:4])
            stretch = math.sqrt(abs(a * d - b * c))
            scale, matrix = (scale * stretch, matrix) if operator == b"cm" else (scale, stretch)
        elif operator == b"BT":
            matrix = 1.0
        elif operator == b"Tf":
            font, size = resources["/Font"][operands[0]].get_object()["/BaseFont"], float(operands[1])
        elif operator in (b"Tj", b"TJ"):
            found.append((where, font, size * matrix * scale))
        elif operator == b"Do":
            drawn = resources["/XObject"][operands[0]].get_object()
            a, b, c, d = map(float, drawn.get("/Matrix", (1, 0, 0, 1))[:4])
            inner = scale * math.sqrt(abs(a * d - b * c))
            found += text_sizes(drawn, resources, reader, inner, "figure") if drawn["/Subtype"] == "/Form" else []
    return found


def test_the_poster_is_legible_from_two_metres():
    reader = PdfReader(ROOT / "poster" / "poster.pdf")
    sizes = text_sizes(reader.pages[0], None, reader)
    assert {where for where, *_ in sizes} == {"page", "figure"}
    words = [size for where, font, size in sizes if where == "page" and "Math" not in font]  # an index may be smaller
    assert min(words) >= 36 and min(size for where, _, size in sizes if where == "figure") >= 24


def test_what_was_broken_on_purpose_is_shown_with_its_outcome(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    assert "make break" in pages.robustness_block()
    outcome = {"kind": "disks", "fault": "a full one", "outcome": "said", "times": 3}
    part = {"date": "2026-11-29", "git_commit": "abcdef0123", "python": "3.11", "torch": "2.13", "transformers": "5.3"}
    made = {"test_disks": part | {"outcomes": [outcome]}}
    files.write_json(tmp_path / "robustness.json", made)
    assert "| disks | a full one | said | 3 |" in pages.robustness_block()
    assert "- On 2026-11-29, of commit abcdef0: Python 3.11" in pages.robustness_block()


def test_every_claim_is_named_once():
    assert len({claim.says for claim in CLAIMS}) == len(CLAIMS)
