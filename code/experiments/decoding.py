"""Decoding alone: trained rows of Table 3 decoded anew, to see what a score owes to the search.

    decoding/smollm2-135m/lora-r4/dev/penalty-1.2    a length penalty on the dev set, where it may be chosen
    decoding/smollm2-135m/lora-r4/chosen-penalty     the best of them on the test set
    decoding/smollm2-135m/lora-r4/beams-1, .../no-blank-line    one setting changed

The paper's length penalty of 0.9 (Table 11) was chosen for GPT-2. A row that leaves facts out may only need another: a
higher one prefers longer texts. Nothing is trained here; a run takes what the row of the same seed learnt.
"""

from __future__ import annotations

from dataclasses import replace

from experiments.e2e import E2E_EXPERIMENTS
from experiments.settings import Experiment, declare
from experiments.smollm2 import SMOLLM2_EXPERIMENTS

PENALTIES = (0.6, 0.9, 1.2, 1.6, 2.0)
CHOSEN_PENALTIES = {  # base -> trained row -> the penalty with the highest BLEU on the dev set
    "gpt2-mini": {"full": 0.6, "lora-r4": 1.2},
    "smollm2-135m": {"full": 1.2, "lora-r4": 0.9},
}
CHANGES = {  # row -> settings of the search
    **{f"dev/penalty-{penalty:g}": {"evaluate": "dev", "length_penalty": penalty} for penalty in PENALTIES},
    "beams-1": {"beams": 1},
    "beams-4": {"beams": 4},
    "no-blank-line": {"blank_line_ends": False},
}


def _decoding() -> list[Experiment]:
    trained = {experiment.name: experiment for experiment in (*E2E_EXPERIMENTS, *SMOLLM2_EXPERIMENTS)}
    experiments = []
    for base, rows in CHOSEN_PENALTIES.items():
        for row, penalty in rows.items():
            source = trained[f"table3/{base}/{row}"]
            for change, settings in (CHANGES | {"chosen-penalty": {"length_penalty": penalty}}).items():
                anew = replace(source.settings, epochs=0, start_from=source.name, **settings)
                against = None if anew.evaluate == "dev" else ("table3", row)
                about = f"{row} of {{model}} decoded anew: {change}"
                experiments += declare("decoding", f"{row}/{change}", about, {source.scale: anew}, against=against)
    return experiments


DECODING_EXPERIMENTS = tuple(_decoding())
