"""Differences from the paper: its setting, ours, why, and what is expected of it.

For the main rows of Tables 2 and 3 and the grid of Table 6, all differences are read from the declarations. Table 11 is
compared with the row at `paper` scale, and that row with the one at `cpu`. `data/differences.csv` adds the reasons, the
differences that are no setting, and those of other rows.

    rows()    # [{"where": "e2e at cpu", "setting": "epochs", "paper": "5", "ours": "1", "reason": ...}, ...]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from experiments.catalogue import find
from experiments.glue import GLUE_TASKS, WEIGHT_TYPES
from files import read_table

SHOWN_METHODS = {"LoRA": "lora", "full": "full"}  # as it is shown -> Settings.method
CPU_BASES = {"gpt2-medium": "smollm2-135m", "roberta-base": "minilm"}  # base at `paper` -> base at `cpu`
E2E = ("table3/gpt2-medium/lora-r4", "table3/gpt2-medium/full")
GRID = tuple(f"table6/roberta-base/{task}/{types}-r8" for task in ("mnli", "sst2") for types in WEIGHT_TYPES)
GLUE = tuple(f"table2/roberta-base/{task}/{row}" for task in GLUE_TASKS for row in ("lora-r8", "full"))
OF_LORA = ("rank", "alpha", "lora_dropout")  # settings of Table 11 that full fine-tuning does not have


def text(value: Any) -> str:
    """A setting's value as it is shown: 5e-5, mnli lora-r8."""
    if isinstance(value, float):
        return f"{value:g}".replace("e-0", "e-")
    if isinstance(value, str) and "/" in value:
        return " ".join(value.split("/")[-2:])  # an experiment: mnli lora-r8
    return "none" if value is None else str(value)


Pairs = Iterator[tuple[str, str, Any, Any]]  # setting, method, the paper's value, ours


def _table_11() -> Pairs:
    for name in E2E:
        settings = find(name).settings
        for line in read_table("gpt2_hyperparameters.csv"):
            ours = getattr(settings, line["setting"])
            printed = type(ours)(line["paper"]) if line["paper"] and ours is not None else ours
            if printed != ours and (settings.method == "lora" or line["setting"] not in OF_LORA):
                yield line["setting"], settings.method, printed, ours


def _smaller(names: tuple[str, ...]) -> Pairs:
    for name in names:
        base = name.split("/")[1]
        paper, ours = (find(n).settings for n in (name, name.replace(base, CPU_BASES[base])))
        for setting, value in vars(paper).items():
            if text(value) != text(getattr(ours, setting)):
                unset = "all" if setting == "train_rows" else None
                yield setting, paper.method, *(unset if v is None else v for v in (value, getattr(ours, setting)))


def declared() -> dict[tuple[str, str], tuple[str, str]]:
    """{(where, setting): (the paper's, ours)} for every setting that differs, both as text."""
    sources = {"e2e at every scale": _table_11(), "e2e at cpu": _smaller(E2E), "glue at cpu": _smaller(GLUE + GRID)}
    values_by_setting: dict[tuple[str, str], list[tuple[str, Any, Any]]] = {}
    for where, pairs in sources.items():
        for setting, method, paper, ours in pairs:
            values_by_setting.setdefault((where, setting), []).append((method, paper, ours))
    return {key: (_shown(values, 1), _shown(values, 2)) for key, values in values_by_setting.items()}


def _shown(values: list[tuple[str, Any, Any]], side: int) -> str:
    """One side's values as text: one for both methods if they agree, a range if tasks differ."""
    texts = {}
    for shown, method in SHOWN_METHODS.items():
        if method_values := {value[side] for value in values if value[0] == method}:
            numbers = all(isinstance(value, (int, float)) for value in method_values)
            ends = sorted(method_values) if numbers else sorted(method_values, key=str)
            texts[shown] = text(ends[0]) if len(ends) == 1 else f"{text(ends[0])} to {text(ends[-1])}"
    if len(texts) == len(SHOWN_METHODS) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{value} ({shown})" for shown, value in texts.items())


def rows() -> list[dict[str, str]]:
    """All differences with their reasons; ValueError for one without a reason, or a reason without one."""
    lines, differing = read_table("differences.csv"), declared()
    reasons = {(line["where"], line["setting"]) for line in lines if not line["ours"]}
    if reasons != differing.keys():
        lacking, stale = sorted(differing.keys() - reasons), sorted(reasons - differing.keys())
        raise ValueError(
            f"expected in data/differences.csv a line for every setting that differs from the paper's, found none for "
            f"{lacking or 'nothing'} and one too many for {stale or 'nothing'}: add the reason, remove the line"
        )
    typed = {(line["where"], line["setting"]): (line["paper"], line["ours"]) for line in lines}
    both = typed | differing
    return [line | dict(zip(("paper", "ours"), both[line["where"], line["setting"]], strict=True)) for line in lines]
