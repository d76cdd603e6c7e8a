"""Figures: what they show is what was recorded, they say what they show, and drawn twice they are the same bytes."""

import io
import shutil
from itertools import pairwise, product

import pandas as pd
import pytest
from matplotlib import colors
from matplotlib import pyplot as plt

import files
from costs.timing import AS_IT_COMES
from experiments.catalogue import EXPERIMENTS, find, select
from experiments.settings import SCALES
from publish import figure_style, figures
from publish.figure_data import ERRORS, KINDS, digest, figure_data
from publish.figure_style import FIRST, LOOKS, styles
from publish.labels import label
from runs import records
from synthetic_records import write, write_e2e, write_glue

FULL, LORA = "table3/gpt2-mini/full", "table3/gpt2-mini/lora-r4"
SEARCHED = (
    ("full", "0.0002", 1.5), ("full", "0.0004", 1.25), ("lora-r1", "0.002", 1.75), ("lora-r8", "0.002", 1.5),
    ("lora-r8", "0.004", 1.625), ("lora-all-r8", "0.002", 1.0), ("top3", "0.0001", 1.0),
)  # fmt: skip
MR = "name[Zizzi], eatType[pub], area[riverside]"


@pytest.fixture(autouse=True)
def results(tmp_path, monkeypatch):
    """A few runs of every table that has figures."""
    monkeypatch.setattr(files, "RESULTS", tmp_path)
    for seed, bleu in ((0, 0.61), (1, 0.63)):
        write_e2e(FULL, seed, bleu, parameters={"trainable": 5_000_000, "head": 0, "total": 5_000_000})
        write_e2e(LORA, seed, bleu - 0.02)
    texts = ["Zizzi is a pub.", "Zizzi is a pub in the city centre."]
    for seed in (0, 1):
        records.write_predictions(LORA, "cpu", seed, [{"mr": MR, "prediction": text} for text in texts])
    write_glue("curves/minilm/mrpc/full", 0, [0.7, 0.8], [0.75, 0.7])
    write_glue("curves/minilm/mrpc/lora-r8", 0, [0.6, 0.9], [0.65, 0.6])
    for row, score in (("query-r1", 0.7), ("query-r8", 0.8), ("mlp-r1", 0.9)):
        write_glue(f"table6/minilm/sst2/{row}", 0, [score], [score])
    for name in EXPERIMENTS:
        if name.startswith(("learning-rate/gpt2-mini/full/", "learning-rate/gpt2-mini/lora/")):
            write(name, 0, dev_loss=1.5)
    write_glue("table2/minilm/mnli/full", 0, [0.8], [0.8], subset={"train": True})
    return tmp_path


@pytest.fixture
def searched():
    """Some rates of SmolLM2's rows."""
    for row, rate, loss in SEARCHED:
        write(f"learning-rate/smollm2-135m/{row}/{rate}", 0, dev_loss=loss)


@pytest.fixture
def timed(results):
    """A step, a batch over adapters and a forward pass, and what is beside them in the files: seconds."""
    ratio = [1.5, 1.25, 2.0]
    measured = {
        "training": dict.fromkeys(
            ("gpt2: full step / LoRA step", "gpt2: PEFT / ours, dropout 0", f"gpt2: PEFT{AS_IT_COMES} / ours"), ratio
        ),
        "serving": {"16 rows, 8 adapters: ours / one adapter (time)": ratio, "16 rows: seconds, 8 adapters": 2.0},
        "latency": {"batch 1, length 8: LoRA merged / plain": ratio},
    }
    for name, quantities in measured.items():
        files.write_json(results / "benchmark" / f"{name}.json", {"measured": quantities})


@pytest.fixture
def over_time():
    """Plain LoRA, a rank that grows once, and a budget that two seeds moved differently."""
    write_e2e("table3/gpt2-mini/lora-r8", 0, 0.6)
    grown = [{"step": 0, "epoch": 0.0, "ranks": {"0.query": 2, "0.value": 2}}, {"step": 10, "epoch": 0.5, "loss": 3.0}]
    grown += [{"step": 10, "epoch": 0.5, "validation_loss": 2.5, "decision": "next"}]
    grown += [{"step": 10, "epoch": 0.5, "ranks": {"0.query": 4, "0.value": 4}}, {"step": 20, "eval_loss": 2.25}]
    write_e2e("rank-over-time/gpt2-mini/sequential-plateau-frozen", 0, 0.6, history=grown)
    for seed, moved in ((0, 9), (1, 10)):
        history = [{"step": 0, "ranks": {"0.query": 8, "0.value": 8, "10.query": 8}}]
        history += [{"step": 5, "ranks": {"0.query": moved, "0.value": 8, "10.query": 7}}]
        write_e2e("rank-over-time/gpt2-mini/adaptive", seed, 0.6, history=history)


def data(kind, table):
    return pd.read_csv(io.StringIO(figure_data(kind, table, "cpu")))


def drawn(kind, table):
    return figures.DRAW[kind](data(kind, table))


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


def test_every_seed_is_a_dot_at_its_parameters_and_score():
    (ax,) = drawn("parameters", "table3").axes
    dots = sorted((x, round(y, 6)) for line in ax.lines for x, y in line.get_xydata())
    assert dots == [(1000, 59), (1000, 61), (5_000_000, 61), (5_000_000, 63)]
    assert ax.get_xscale() == "log"
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("trainable parameters", "BLEU (x 100)")


def test_training_and_validation_losses_are_apart_and_as_logged():
    training, validation = drawn("training", "table3").axes
    assert "training" in training.get_title("left") and "validation" in validation.get_title("left")
    assert {tuple(map(tuple, line.get_xydata())) for line in training.lines if len(line.get_xydata())} == {
        ((10, 3.0), (20, 2.0))
    }
    assert [line.get_xdata().tolist() for line in validation.lines] == [[1.5, 1.5], [1.5, 1.5]]  # a dot a seed
    assert [name.get_text() for name in validation.get_yticklabels()] == [FIRST, "LoRA r=4"]
    assert validation.get_xlabel() == "validation loss at the end (nats)"


def test_where_every_row_has_one_validation_they_are_dots_from_the_highest_up_to_the_lowest():
    write_e2e("table3/gpt2-mini/lora-r2", 0, 0.6, history=[{"step": 20, "eval_loss": 1.25}])
    validation = drawn("training", "table3").axes[1]
    assert [name.get_text() for name in validation.get_yticklabels()] == [FIRST, "LoRA r=4", "LoRA r=2"]
    assert [line.get_ydata().tolist() for line in validation.lines] == [[0, 0], [1, 1], [2]]
    write_e2e("table3/gpt2-mini/lora-r8", 0, 0.6, history=[{"step": s, "eval_loss": 1.25} for s in (10, 20)])
    assert drawn("training", "table3").axes[1].get_xlabel() == "optimizer steps"


def test_scores_after_every_epoch_are_shown_on_both_splits():
    reported, held_out = drawn("epochs", "curves").axes
    assert "reported" in reported.get_title("left") and "held-out" in held_out.get_title("left")
    assert [line.get_ydata().tolist() for line in reported.lines] == [[70, 80], [60, 90]]
    assert [line.get_ydata().tolist() for line in held_out.lines] == [[75, 70], [65, 60]]


def test_the_heat_map_has_a_number_in_every_cell_and_says_which_was_not_run():
    ax = drawn("grid", "table6").axes[0]
    assert [text.get_text() for text in ax.texts] == ["70.00", "80.00", "90.00", "not run"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["query", "mlp"]


def test_the_rate_that_the_tables_use_is_marked_and_no_other():
    found = data("choice", "learning-rate")
    used = found[found.used == "yes"].set_index("label").learning_rate
    assert used.to_dict() == {
        row: find(f"table3/gpt2-mini/{name}").settings.learning_rate
        for row, name in ((FIRST, "full"), ("LoRA", "lora-r4"))
    }
    ax = drawn("choice", "learning-rate").axes[0]
    largest = max(line.get_markersize() for line in ax.lines)
    large = [line for line in ax.lines if line.get_markersize() == largest]
    assert sorted(line.get_xdata().tolist() for line in large) == sorted([rate] for rate in used)
    assert len(ax.lines) == 2 * len(large) and ax.get_xscale() == "log"


def test_every_rank_of_one_set_of_matrices_has_its_losses_by_rate_beside_full_and_its_best_is_large(searched):
    lines = data("rates-and-ranks", "learning-rate")
    assert set(lines.panel) == {"smollm2-135m, E2E, 2 matrices a layer: dev_loss"}  # of the others one rank, or none
    [ax] = drawn("rates-and-ranks", "learning-rate").axes
    drawn_lines = [line.get_xydata().tolist() for line in ax.lines]
    full, r1, r8 = [[0.0002, 1.5], [0.0004, 1.25]], [[0.002, 1.75]], [[0.002, 1.5], [0.004, 1.625]]
    best = [[full[1]], r1, [r8[0]]]
    assert drawn_lines == [line for pair in zip((full, r1, r8), best, strict=True) for line in pair]


def test_a_loss_far_above_the_others_is_named_at_the_edge_and_squeezes_no_line(searched):
    write("learning-rate/smollm2-135m/lora-r8/0.008", 0, dev_loss=9.5)
    for kind in ("choice", "rates-and-ranks"):
        ax = drawn(kind, "learning-rate").axes[0]
        assert [text.get_text() for text in ax.texts] == ["9.50 \u2191"]
        assert 1.75 < ax.get_ylim()[1] < 3


def test_the_first_choice_is_as_wide_as_the_figure_and_the_others_share_rows_of_three():
    for task in ("mrpc", "rte", "stsb", "cola"):
        for rate in ("5e-05", "0.0001"):
            write_glue(f"learning-rate/minilm/{task}/full/{rate}", 0, [0.8], [0.8])
    axes = drawn("choice", "learning-rate").axes
    places = [ax.get_subplotspec() for ax in axes]
    assert [(place.rowspan.start, list(place.colspan)) for place in places] == [
        (0, [0, 1, 2]), (1, [0]), (1, [1]), (1, [2]), (2, [0]),
    ]  # fmt: skip
    assert axes[0].get_title("left") == "gpt2-mini, E2E" and axes[4].get_ylabel() == "matthews\n(x 100)"


def test_a_rank_that_changes_is_a_staircase_beside_the_losses_and_plain_lora(over_time):
    rank, training, end, on_the_way = drawn("stages", "rank-over-time").axes
    points = [[line.get_xydata().tolist() for line in ax.lines] for ax in (rank, training, end, on_the_way)]
    mean = 8.33333  # of the budget that gained one
    assert points[0] == [
        [[0, 8], [20, 8]], [[0, 8], [5, 8], [5, 8]], [[0, 8], [5, mean], [5, mean]], [[0, 2], [10, 4], [20, 4]],
    ]  # fmt: skip
    assert {line.get_drawstyle() for line in rank.lines} == {"steps-post"}
    assert points[1] == [[[10, 3], [20, 2]], [[10, 3]]]
    assert points[3] == [[[10, 2.5], [20, 2.25]]]
    assert [line.get_xdata().tolist() for line in end.lines] == [[2.25], [1.5]]
    assert [name.get_text() for name in end.get_yticklabels()] == ["sequential plateau frozen", "LoRA r=8"]
    assert set(data("stages", "rank-over-time").label) == {"LoRA r=8", "adaptive", "sequential plateau frozen"}


def test_an_adaptive_budget_is_a_heat_map_of_projections_by_steps_with_the_mean_of_the_seeds(over_time):
    found = data("ranks", "rank-over-time")
    assert found.groupby("step")["rank"].sum().to_dict() == {0: 24, 5: 24.5}
    (ax,) = [ax for ax in drawn("ranks", "rank-over-time").axes if ax.get_ylabel() == "projection and layer"]
    assert [label.get_text() for label in ax.get_yticklabels()] == ["query 0", "query 10", "value 0"]
    assert [label.get_text() for label in ax.get_xticklabels()] == ["0", "5"]
    assert found.set_index(["step", "layer", "projection"])["rank"][5, 0, "query"] == 9.5


def test_time_and_memory_are_medians_with_their_units():
    time, memory = drawn("costs", "table3").axes
    assert [bar.get_width() for bar in time.patches] == [10, 10, 1, 1]
    assert [bar.get_width() for bar in memory.patches] == [1.5, 1.5]
    assert (time.get_xlabel(), memory.get_xlabel()) == ("minutes", "peak memory (GiB)")
    assert time.get_title("left") == "gpt2-mini, E2E; cpu, threads: 1, 2026-11-22"


def test_times_of_another_day_or_base_are_in_a_panel_of_their_own():
    write_e2e("table3/gpt2-mini/lora-r8", 0, 0.6, started="2026-11-23T10:00:00+00:00", training_seconds=60.0)
    write_e2e("table3/smollm2-135m/full", 0, 0.6)
    axes = drawn("costs", "table3").axes
    assert [len(ax.get_yticks()) for ax in axes[::2]] == [1, 2, 1]
    assert [ax.patches[0].get_width() for ax in axes[::2]] == [10, 10, 1]
    titles = [ax.get_title("left").partition(";")[0] for ax in axes[::2]]
    assert titles == ["smollm2-135m, E2E", "gpt2-mini, E2E", "gpt2-mini, E2E"]


def test_slot_errors_are_counted_by_slot_and_kind():
    records.predictions_path(LORA, "cpu", 1).write_text('{"mr', encoding="utf-8")  # damaged: of two runs, one counts
    assert set(data("slots", "table3")[["n", "texts"]].itertuples(index=False, name=None)) == {(1, 2)}
    records.predictions_path(LORA, "cpu", 1).unlink()
    shutil.copy(records.predictions_path(LORA, "cpu", 0), records.predictions_path(LORA, "cpu", 1))
    found = data("slots", "table3").set_index(["slot", "kind"])
    assert set(found.label) == {"LoRA r=4"}
    assert found.errors.sum() == 4  # of two seeds
    assert found.errors["area", "missing"] == found.errors["area", "wrong"] == 2
    heat, bars = drawn("slots", "table3").axes
    assert [text.get_text() for text in heat.texts] == ["0.0"] * 5 + ["100.0"] + ["0.0"] * 2
    assert [bar.get_width() for bar in bars.patches] == [50, 50, 0, 0] and len(ERRORS) == 4


def test_a_subset_of_the_data_is_named_in_its_panel():
    assert {panel.partition(":")[0] for panel in data("parameters", "table2").panel} == {"minilm, MNLI (subset)"}


@pytest.mark.parametrize(
    ("kind", "table"), [("parameters", "table3"), ("stages", "rank-over-time"), ("choice", "learning-rate")]
)
def test_a_figure_drawn_twice_is_the_same_bytes_and_carries_the_digest_of_its_numbers(kind, table, results, over_time):
    found = []
    for _ in range(2):
        found.append([path.read_bytes() for path in figures.draw(kind, table, "cpu")])
    assert found[0] == found[1]
    text = (results / "figures" / f"{table}-{kind}-cpu.csv").read_text(encoding="utf-8")
    assert text == figure_data(kind, table, "cpu")
    assert all(digest(text) in content and digest(text + "0") not in content for content in found[0])
    assert b"CreationDate" not in found[0][1]


def test_a_title_says_what_is_shown_of_which_table_at_which_scale_over_how_many_seeds(monkeypatch, tmp_path):
    titles = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: titles.append(figure.get_suptitle()))
    write_e2e(LORA, 2, 0.6)
    for kind, table in (("parameters", "table3"), ("grid", "table6")):
        figures.draw_text(figure_data(kind, table, "cpu"), kind, table, "cpu", tmp_path)
    said = [" ".join(title.split()) for title in titles]  # whatever the line breaks
    what = "Score against trainable parameters, a dot a seed"
    assert said[0] == f"{what} Table 3: E2E; scale cpu; n = 2 to 3 seeds"
    assert said[1].endswith("scale cpu; n = 1 seed")


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("table3/gpt2-mini/lora-r4", "LoRA r=4"),
        ("table3/gpt2-mini/full/official-code", "full fine-tuning"),
        ("table2/roberta-large/mrpc/lora-r8-restricted", "LoRA† r=8"),
        ("table2/roberta-large/mrpc/adapter-h-6.0M", "Adapter H 6.0M"),
        ("table2/minilm/mrpc/adapter-h", "Adapter H"),
        ("table3/gpt2-medium/adapter-l-11M", "Adapter L 11M"),
        ("table3/gpt2-mini/adapter-l-wide", "Adapter L wide"),
        ("learning-rate/gpt2-mini/adapter-l-wide/0.004", "Adapter L wide 0.004"),
        ("learning-rate/minilm/mrpc/full/5e-05", "full fine-tuning 5e-05"),
        ("decoding/gpt2-mini/lora-r4/dev/penalty-1.2", "LoRA r=4, dev penalty 1.2"),
    ],
)
def test_a_row_is_named_as_the_paper_writes_it_with_sizes_where_they_are_the_papers(name, shown):
    assert label(find(name)) == shown


@pytest.mark.parametrize("scale", SCALES)
def test_no_two_rows_of_a_table_have_one_name_on_a_model_and_a_task(scale):
    for table in {e.table for e in EXPERIMENTS.values() if e.scale == scale}:
        rows = select(table, scale)
        assert len({(e.settings.model, e.settings.task, label(e)) for e in rows}) == len(rows)


def test_every_kind_of_figure_has_numbers_a_drawing_and_a_heading():
    assert KINDS.keys() == figures.DRAW.keys() == figures.HEADINGS.keys()


@pytest.mark.parametrize(
    ("kind", "table"),
    [
        ("choice", "learning-rate"), ("parameters", "table3"), ("training", "table3"), ("stages", "rank-over-time"),
        ("ranks", "rank-over-time"), ("rates-and-ranks", "learning-rate"), ("epochs", "curves"), ("grid", "table6"),
        ("costs", "table3"), ("slots", "table3"), ("times", "benchmark"),
    ],
)  # fmt: skip
def test_nothing_written_is_cut_off(kind, table, over_time, searched, timed, monkeypatch, tmp_path):
    kept = []
    monkeypatch.setattr(figures, "save", lambda figure, *_: kept.append(figure))
    figures.draw_text(figure_data(kind, table, "cpu"), kind, table, "cpu", tmp_path)
    kept[0].canvas.draw()
    box, (width, height) = kept[0].get_tightbbox(), kept[0].get_size_inches()
    assert box.x0 >= 0 and box.y0 >= 0 and box.x1 <= width and box.y1 <= height
    assert width <= figure_style.WIDTH


def test_a_difference_has_an_interval_where_seeds_give_one_and_full_fine_tuning_has_no_row():
    write_e2e("table3/gpt2-mini/lora-r8", 0, 0.59)
    several, one = data("differences", "table3").to_dict("records")
    assert (several["label"], several["n"]) == ("LoRA r=4", 2) and one["label"] == "LoRA r=8"
    assert several["difference_low"] == several["difference"] == several["difference_high"] == -2  # the same twice
    assert one["difference"] == pytest.approx(59 - 61) and pd.isna(one["difference_low"])
    (ax,) = drawn("differences", "table3").axes
    assert [text.get_text() for text in ax.texts] == [f"{row['difference']:+.2f}" for row in (several, one)]
    for row, bleu in (("full", 0.6), ("lora-r4", 0.5)):
        write_e2e(f"table3/smollm2-135m/{row}", 0, bleu)
    assert list(data("differences", "table3")["panel"]) == ["smollm2-135m"]  # the weak base is left out beside it


def test_ratios_of_time_are_dots_on_their_intervals_in_a_panel_for_each_benchmark(timed, tmp_path):
    rows = data("times", "benchmark")
    assert list(rows["row"]) == ["gpt2", "gpt2", "16 rows, 8 adapters", "batch 1, length 8"]
    assert list(rows["label"]) == [
        "full step / LoRA step", "PEFT / ours, dropout 0", "ours / one adapter", "LoRA merged / plain",
    ]  # fmt: skip
    axes = drawn("times", "benchmark").axes
    assert [len(ax.collections) for ax in axes] == [2, 1, 1]
    for ax in axes:
        for dot, interval in zip(ax.lines[1:], ax.collections, strict=True):  # the first line is where both are equal
            ((low, beside), (high, _)) = interval.get_segments()[0]
            assert (low, high, dot.get_xdata()[0], dot.get_ydata()[0]) == (1.25, 2.0, 1.5, beside)
    (tmp_path / "benchmark" / "training.json").unlink()
    assert "a training step" not in set(data("times", "benchmark")["panel"])


def test_nothing_recorded_and_an_unknown_kind_are_refused():
    with pytest.raises(ValueError, match=r"nothing of table3 is recorded at scale paper .* sweep table3 --scale paper"):
        figures.draw("parameters", "table3", "paper")
    with pytest.raises(ValueError, match=r"no figure is called 'pie'; the figures are parameters, differences"):
        figures.draw("pie", "table3", "cpu")


def brightness(colour):
    red, green, blue = colors.to_rgb(colour)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def legends():
    """The labels of all rows that a figure can have, for every figure with looks."""
    for kind, scale in product(("parameters", "training", "epochs", "choice", "stages"), SCALES):
        for table in KINDS[kind].tables:
            rows = select(table, scale)
            rows = [*(find(e.against) for e in rows if kind == "stages"), *rows]
            for base in {e.settings.model for e in rows}:  # the panels of one base
                names = [label(e) for e in rows if e.settings.model == base]
                yield list(dict.fromkeys(name.rpartition(" ")[0] if kind == "choice" else name for name in names))


def test_series_are_told_apart_without_colour():
    for names in legends():
        looks = styles(names)
        assert len({(look["marker"], look["fillstyle"]) for look in looks.values()}) == len(names)
        assert len({str(look["linestyle"]) for look in looks.values()}) == len(names)
        shades = [brightness(look["color"]) for look in looks.values()]
        assert min(abs(a - b) for a, b in pairwise(shades)) > 0.1
    greys = [brightness(colour) for colour in figure_style.GREYS]
    assert greys == sorted(greys) and min(b - a for a, b in pairwise(greys)) > 0.2
    ramp = [brightness(plt.get_cmap(figure_style.BRIGHTNESS)(i / 20)) for i in range(21)]
    assert ramp == sorted(ramp)


def test_a_method_looks_the_same_in_every_figure():
    everyone = set().union(*legends())
    assert all(styles([name]) == {name: look} for name, look in styles(everyone).items())
    assert len({(marker, fill) for _, marker, fill, _ in LOOKS.values()}) == len(LOOKS)
    others = [f"not a method {i}" for i in range(len(LOOKS) - 2)]
    looks = styles(["BitFit", *others])
    assert len({str(look) for look in looks.values()}) == len(looks) and looks["BitFit"] == styles(["BitFit"])["BitFit"]
    assert styles([FIRST])[FIRST] not in looks.values()
