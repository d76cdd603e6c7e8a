"""Differences from the paper: its setting, ours, why, and what is expected of it.

For the main rows of Tables 2 and 3 and the grid of Table 6, what differs is read from the declarations (Table 11 beside
`resolve(..., "paper")`, and that beside `"cpu"`), so that none of their settings is passed over; `data/differences.csv`
adds the reasons, and by hand those differences that are no setting or are of other rows.

    rows()    # [{"where": "e2e at cpu", "setting": "epochs", "paper": "5", "ours": "1", "reason": ...}, ...]
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from data_tables import read_table
from experiments import find, resolve
from experiments_glue import GLUE_TASKS, WEIGHT_TYPES

METHODS = {"LoRA": "lora", "full": "full"}  # as it is shown -> Settings.method
E2E = ("table3/gpt2-medium/lora-r4", "table3/gpt2-medium/full")
GRID = tuple(f"table6/roberta-base/{task}/{types}-r8" for task in ("mnli", "sst2") for types in WEIGHT_TYPES)
GLUE = tuple(f"table2/roberta-base/{task}/{row}" for task in GLUE_TASKS for row in ("lora-r8", "full"))
OF_LORA = ("rank", "alpha", "lora_dropout")  # lines of Table 11 that full fine-tuning has no part in


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
        settings = resolve(find(name), "paper")
        for line in read_table("gpt2_hyperparameters.csv"):
            ours = getattr(settings, line["setting"])
            printed = type(ours)(line["paper"]) if line["paper"] and ours is not None else ours
            if printed != ours and (settings.method == "lora" or line["setting"] not in OF_LORA):
                yield line["setting"], settings.method, printed, ours


def _smaller(names: tuple[str, ...]) -> Pairs:
    for name in names:
        paper, ours = (resolve(find(name), scale) for scale in ("paper", "cpu"))
        for setting, value in vars(paper).items():
            if value != getattr(ours, setting):
                none = "all" if setting == "train_rows" else None
                yield setting, paper.method, *(none if v is None else v for v in (value, getattr(ours, setting)))


def declared() -> dict[tuple[str, str], tuple[str, str]]:
    """(where, setting) -> (the paper's, ours) of every setting that differs, both as they are shown."""
    sources = {"e2e at every scale": _table_11(), "e2e at cpu": _smaller(E2E), "glue at cpu": _smaller(GLUE + GRID)}
    found: dict[tuple[str, str], list[tuple[str, Any, Any]]] = {}
    for where, pairs in sources.items():
        for setting, method, paper, ours in pairs:
            found.setdefault((where, setting), []).append((method, paper, ours))
    return {key: (_shown(values, 1), _shown(values, 2)) for key, values in found.items()}


def _shown(values: list[tuple[str, Any, Any]], side: int) -> str:
    """What the two methods have, apart where they differ, as a range where the tasks do."""
    texts = {}
    for shown, method in METHODS.items():
        if of_method := {value[side] for value in values if value[0] == method}:
            numbers = all(isinstance(value, (int, float)) for value in of_method)
            ends = sorted(of_method) if numbers else sorted(of_method, key=str)
            texts[shown] = text(ends[0]) if len(ends) == 1 else f"{text(ends[0])} to {text(ends[-1])}"
    if len(texts) == len(METHODS) and len(set(texts.values())) == 1:
        return next(iter(texts.values()))
    return "; ".join(f"{value} ({shown})" for shown, value in texts.items())


def rows() -> list[dict[str, str]]:
    """All differences with their reasons; ValueError where one has no reason, or a reason no difference any more."""
    lines, found = read_table("differences.csv"), declared()
    reasons = {(line["where"], line["setting"]) for line in lines if not line["ours"]}
    if reasons != found.keys():
        lacking, stale = sorted(found.keys() - reasons), sorted(reasons - found.keys())
        raise ValueError(
            f"expected in data/differences.csv a line for every setting that differs from the paper's, found none for "
            f"{lacking or 'nothing'} and one too many for {stale or 'nothing'}: add the reason, remove the line"
        )
    typed = {(line["where"], line["setting"]): (line["paper"], line["ours"]) for line in lines}
    both = typed | found
    return [line | dict(zip(("paper", "ours"), both[line["where"], line["setting"]], strict=True)) for line in lines]
