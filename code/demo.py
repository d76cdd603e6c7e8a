"""The demonstration: a web page on this machine, where one input is answered through several adapters in one batch.

    make demo                 installs Gradio, then does this:
    python code/demo.py       trains the adapters that are not there yet, in some minutes, and serves the page

The adapters are of scale `quick`: built-in data, a small GPT-2 and MiniLM. Nothing is fetched and nothing is sent. One
request is answered at a time, and a few may wait. What is answered is in `serving/answers.py`.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from dataclasses import dataclass
from html import escape
from typing import TYPE_CHECKING, Any

from transformers import PreTrainedTokenizerBase

from costs.estimate import estimate
from experiments.catalogue import find
from files import show_any_text
from models import load_model, load_tokenizer
from runs.execute import do
from runs.records import read_records
from runs.run import AGAIN, Run, RunTaken
from serving.adapters import AdapterBank
from serving.answers import BASE, SENTENCE_LENGTH, VALUE_LENGTH, Answers, classify, write
from tasks.catalogue import TASKS, Task
from tasks.e2e.data import load_builtin
from tasks.e2e.generator import VALUES
from tasks.e2e.slot_errors import SLOTS, parse_mr
from tasks.glue.data import load_glue

if TYPE_CHECKING:
    import gradio

WRITERS = (
    "subspaces/gpt2-mini/e2e-builtin/lora-r1",
    "subspaces/gpt2-mini/e2e-builtin/lora-r8",
    "table3/gpt2-mini/e2e-builtin/lora-r4",
)
CLASSIFIERS = (
    "table6/minilm/sentiment-builtin/query-r1",
    "table2/minilm/sentiment-builtin/lora-r8",
    "table2/minilm/paraphrase-builtin/lora-r8",
)
SEED = 0
WAITING = 8  # requests; a further one is refused
FONTS = {"font": ["system-ui", "sans-serif"], "font_mono": ["monospace"]}  # of the machine: none is fetched
TITLE = "One model, many adapters"
INTRODUCTION = f"""# {TITLE}
Each row of a batch has its own LoRA adapter, or none, and all rows go through one frozen model together. The adapters
were trained for seconds, on sentences that a grammar made: they show how it works, not how well LoRA does."""
STYLE = """
.answers { display: grid; grid-template-columns: repeat(auto-fit, minmax(15rem, 1fr)); gap: 0.75rem; }
.answer { border: 1px solid var(--border-color-primary); border-radius: 0.5rem; padding: 0.75rem 1rem; }
.answer h4 { margin: 0 0 0.25rem; } .answer p { margin: 0.25rem 0; } .answer .said { font-size: 1.1rem; }
.answer .small, .batch { opacity: 0.75; }
"""


@dataclass(frozen=True)
class Served:
    """A base model with adapters beside it, its tokenizer, and the task of each adapter."""

    bank: AdapterBank
    tokenizer: PreTrainedTokenizerBase
    tasks: dict[str, Task]


def serve(experiments: tuple[str, ...]) -> Served:
    """The adapters of these experiments, all of one base; those that are missing are trained first."""
    runs = {_label(run): run for run in (Run(find(name), SEED) for name in experiments)}
    for run in runs.values():
        if not (run.recorded and run.adapter.exists()):
            minutes = estimate(run.experiment.settings, run.experiment.scale, read_records("quick")).minutes
            print(f"{run}: its adapter is not here yet, training takes about {max(1, minutes):.0f} min", flush=True)
            do(run, for_adapter=True)
    tasks = {name: TASKS[run.experiment.settings.task] for name, run in runs.items()}
    base = run.experiment.settings.model
    bank = AdapterBank(load_model(base, TASKS[run.experiment.settings.task].outputs).eval())
    for name, run in runs.items():
        run.require_own_adapter()
        bank.add(name, run.adapter)
    return Served(bank, load_tokenizer(base), tasks)


def _label(run: Run) -> str:
    settings = run.experiment.settings
    task = TASKS[settings.task]
    return f"{task.title}, r={settings.rank}, {settings.train_rows or task.trained_rows:,} rows"


def cards(answers: Answers) -> str:
    """The rows side by side as HTML, in which all that was typed or generated is text."""
    shown = [
        f"<div class='answer'><h4>{escape(row.adapter)}</h4>"
        + "".join(f"<p class='small'>“{escape(sentence)}”</p>" for sentence in row.read)
        + f"<p class='said'>{escape(row.text)}</p><p class='small'>{_milliseconds(row.seconds)} alone</p></div>"
        for row in answers.rows
    ]
    alone = _milliseconds(sum(row.seconds for row in answers.rows))
    same = "the same answers" if answers.same_alone else "answers that differ"
    batch = f"{len(shown)} rows in one batch: <b>{_milliseconds(answers.seconds)}</b>. One after the other: {alone}, "
    return f"<p class='batch'>{batch}{same}.</p><div class='answers'>{''.join(shown)}</div>"


def _milliseconds(seconds: float) -> str:
    return f"{1000 * seconds:,.0f} ms"


def page(writer: Served, classifier: Served) -> gradio.Blocks:
    """The page, not started; it opens with an example and its answers."""
    import gradio  # `make demo` installs it

    def write_shown(names: list[str], *values: str) -> str:
        return cards(write(writer.bank, writer.tokenizer, dict(zip(SLOTS, values, strict=True)), names))

    def classify_shown(names: list[str], *sentences: str) -> str:
        return cards(classify(classifier.bank, classifier.tokenizer, classifier.tasks, sentences, names))

    def answers_of(verb: str, call: Callable[..., str], names: list[str], inputs: list[Any]) -> None:
        """The right side of a tab: which adapters, the button, and the answers to the example."""

        def refusing(*given: Any) -> str:
            try:
                return call(*given)
            except ValueError as error:
                raise gradio.Error(str(error), title="Not answered", print_exception=False) from error

        chosen = gradio.CheckboxGroup(names, value=names, label="a row of the batch for each")
        button = gradio.Button(verb, variant="primary")
        html = gradio.HTML(call(names, *(one.value for one in inputs)))
        button.click(
            refusing, [chosen, *inputs], html, concurrency_limit=1, concurrency_id="models", api_visibility="private"
        )

    restaurants = [parse_mr(row.mr) for row in load_builtin("test")[::56][:3]]
    pairs = [[*row.texts] for row in load_glue("paraphrase-builtin", "validation").examples[:2]]
    reviews = [[*row.texts, ""] for row in load_glue("sentiment-builtin", "validation").examples[:2]]
    with gradio.Blocks(title=TITLE, analytics_enabled=False) as blocks:
        gradio.Markdown(INTRODUCTION)
        with gradio.Tab("Write about a restaurant"), gradio.Row():
            with gradio.Column(scale=2):
                with gradio.Row():
                    slots = [
                        gradio.Textbox(
                            restaurants[0].get(slot, ""), label=slot, placeholder=f"{VALUES[slot][0]}, ...",
                            max_length=VALUE_LENGTH, max_lines=1, min_width=200,
                        )
                        for slot in SLOTS
                    ]  # fmt: skip
                rows = [[row.get(slot, "") for slot in SLOTS] for row in restaurants]
                gradio.Examples(rows, slots, example_labels=[row["name"] for row in restaurants])
            with gradio.Column(scale=3):
                answers_of("Write", write_shown, [BASE, *writer.bank.names], slots)
        with gradio.Tab("Classify sentences"), gradio.Row():
            with gradio.Column(scale=2):
                sentences = [
                    gradio.Textbox(pairs[0][place], label=label, max_length=SENTENCE_LENGTH, lines=2)
                    for place, label in enumerate(("a sentence", "another one, which is compared with it"))
                ]
                labels = ["a pair", "another pair", "a review", "another review"]
                gradio.Examples([*pairs, *reviews], sentences, example_labels=labels)
            with gradio.Column(scale=3):
                answers_of("Classify", classify_shown, classifier.bank.names, sentences)
    return blocks.queue(max_size=WAITING)


def main() -> None:
    os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"  # read when Gradio is imported
    try:
        import gradio
    except ImportError:
        sys.exit("error: the page needs Gradio, which is not installed: `make demo` installs it and starts the page")
    show_any_text()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C
    try:
        blocks = page(serve(WRITERS), serve(CLASSIFIERS))
        blocks.launch(
            server_name="127.0.0.1", share=False, ssr_mode=False, run_history=False, footer_links=[], css=STYLE,
            theme=gradio.themes.Default(**FONTS),
        )  # fmt: skip
    except KeyboardInterrupt as stop:
        sys.exit(f"\nstopped: {stop or AGAIN}")
    except (ValueError, OSError, FloatingPointError, RunTaken) as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
