"""The official E2E scores (Table 3 of the paper) as a module of Hugging Face `evaluate`: local checkout, offline.

    >>> e2e_nlg = evaluate.load("code/evaluate_modules/e2e_nlg")
    >>> e2e_nlg.compute(predictions=["Zizzi is a pub."], references=[["Zizzi is a pub.", "There is a pub, Zizzi."]])
    {"BLEU": ..., "NIST": ..., "METEOR": ..., "ROUGE_L": ..., "CIDEr": ...}

`evaluate` runs a copy of this file in its cache, which may come from another checkout or working directory. So the path
given to `evaluate.load` is asked for the `code/` folder to import `tasks.e2e.metrics` from.
"""

from __future__ import annotations

import inspect
import sys
from pathlib import Path
from typing import Any

import datasets
import evaluate

DESCRIPTION = "BLEU, NIST, METEOR, ROUGE-L and CIDEr as the official script of the E2E NLG challenge prints them."
INPUTS = """
    predictions: list of texts.
    references: for each prediction, the list of its references.
Returns a dict of the five scores (BLEU from 0 to 1); METEOR is None where its Java program cannot run.
"""
CITATION = """@article{dusek2020e2e, title={Evaluating the State-of-the-Art of End-to-End Natural Language Generation: \
The E2E NLG Challenge}, author={Du{\\v s}ek, Ond{\\v r}ej and Novikova, Jekaterina and Rieser, Verena}, \
journal={Computer Speech \\& Language}, volume={59}, year={2020}}"""


class E2ENLG(evaluate.Metric):
    def _info(self) -> evaluate.MetricInfo:
        return evaluate.MetricInfo(
            description=DESCRIPTION,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features(
                {
                    "predictions": datasets.Value("string"),
                    "references": datasets.Sequence(datasets.Value("string")),
                }
            ),
            reference_urls=["https://github.com/tuetschek/e2e-metrics"],
        )

    def _download_and_prepare(self, dl_manager: datasets.DownloadManager) -> None:
        load = next(frame for frame, *_ in inspect.stack() if frame.f_globals["__name__"] == "evaluate.loading")
        checkout = Path(load.f_locals["path"]).resolve()
        code = next(
            (folder for folder in checkout.parents if (folder / "tasks" / "e2e" / "metrics.py").is_file()), None
        )
        if code is None:
            raise FileNotFoundError(
                f"no tasks/e2e/metrics.py above {checkout}: load this module from a checkout of the project"
            )
        sys.path.append(str(code))  # last, so that it hides no installed module
        from tasks.e2e import metrics

        self.metrics = metrics

    def add(self, *, prediction: str | None = None, reference: list[str] | None = None, **others: Any) -> None:
        """One text with its references; TypeError for anything else."""
        self.metrics.check_texts([prediction], [reference])
        super().add(prediction=prediction, reference=reference, **others)

    def add_batch(
        self, *, predictions: list[str] | None = None, references: list[list[str]] | None = None, **others: Any
    ) -> None:
        """Texts, and a list of references for each; TypeError for anything else."""
        self.metrics.check_texts(predictions, references)  # before `datasets` makes a text of whatever it gets
        super().add_batch(predictions=predictions, references=references, **others)

    def _compute(self, predictions: list[str], references: list[list[str]]) -> dict[str, float | None]:
        return self.metrics.score(predictions, references)
