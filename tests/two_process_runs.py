"""Small training runs whose numbers one process and two have to agree on; `test_two_processes.py` starts both.

accelerate launch --multi_gpu --num_processes 2 tests/two_process_runs.py FOLDER     (without a GPU as with two)
"""

from __future__ import annotations

import json
import os
import random
import signal
import sys
from dataclasses import replace
from pathlib import Path

CODE = Path(__file__).resolve().parent.parent / "code"
SECOND = os.environ.get("RANK") == "1"
STOPPED_STEP, BROKEN_STEP = 4, 5


def runs(folder: Path) -> dict[str, dict]:
    """The facts of each run by name; of the second process, which has none, an empty one."""
    import torch
    from transformers import BertConfig, BertForSequenceClassification, GPT2Config, GPT2LMHeadModel

    from experiments.settings import Job, Settings
    from tasks.e2e.loss import completion_loss
    from training.batches import IGNORED, pad_right
    from training.checkpoints import TrainingInterrupted
    from training.optimizer import trained_state
    from training.trainer import ShareDone, TrainingDiverged, train

    settings = Settings(
        "e2e", "gpt2-mini", "full", learning_rate=1e-2, epochs=2, batch_size=8, max_grad_norm=1.0, keep="best-epoch"
    )  # fmt: skip
    none = {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "bos_token_id": 0, "eos_token_id": 0}

    def gpt2():
        torch.manual_seed(0)
        return GPT2LMHeadModel(GPT2Config(n_embd=16, n_layer=1, n_head=2, vocab_size=64, n_positions=64, **none))

    def bert():
        torch.manual_seed(0)
        shape = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
        dropout = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}
        return BertForSequenceClassification(BertConfig(vocab_size=64, num_labels=3, **shape, **dropout))

    def completions(number):
        pick = random.Random(number)
        rows = []
        for _ in range(number):
            context, completion = (
                [pick.randrange(1, 64) for _ in range(pick.randrange(*span))] for span in ((3, 12), (1, 20))
            )
            rows.append({"input_ids": context + completion, "labels": [IGNORED] * len(context) + completion})
        return rows

    def sentences(number):
        pick = random.Random(number)
        lengths = [pick.randrange(3, 20) for _ in range(number)]
        return [{"input_ids": [pick.randrange(64) for _ in range(n)], "labels": n % 3} for n in lengths]

    def pad_sentences(rows):
        longest = max(len(row["input_ids"]) for row in rows)
        ids = [row["input_ids"] + [0] * (longest - len(row["input_ids"])) for row in rows]
        return {"input_ids": torch.tensor(ids), "labels": torch.tensor([row["labels"] for row in rows])}

    dev = pad_right(completions(8))

    def smoothed(model, batch):
        return completion_loss(model, batch, 0.1)

    def dev_loss(model, _):
        with torch.no_grad():
            return {"loss": completion_loss(model, dev).item()}

    def facts(model, name, loss, **others):
        arguments = {
            "rows": completions(41),
            "validate": dev_loss,
        } | others  # 41 = 5 * 8 + 1: the last batch is one row
        try:
            result = train(model, job=Job(settings, 0, folder / name), loss=loss, **arguments)
        except ShareDone:
            return {}
        except (TrainingInterrupted, TrainingDiverged) as error:
            return {"error": str(error)}
        weights = {key: value.flatten().tolist() for key, value in trained_state(model).items()}
        measured = [{k: entry.get(k) for k in ("loss", "grad_norm", "eval_loss")} for entry in result.history]
        return {
            "weights": weights,
            "history": measured,
            "tokens": result.training_tokens,
            "kept_step": result.kept_step,
        }

    calls = 0

    def stopped(model, batch):
        nonlocal calls
        calls += 1
        if calls == STOPPED_STEP and (SECOND or "RANK" not in os.environ):
            os.kill(os.getpid(), signal.SIGTERM)
        return smoothed(model, batch)

    def broken(model, batch):
        nonlocal calls
        calls += 1
        return smoothed(model, batch) * (float("nan") if SECOND and calls == BROKEN_STEP else 1.0)

    found = {"completions": facts(gpt2(), "completions", smoothed)}
    classified = {"rows": sentences(22), "collate": pad_sentences, "validate": lambda m, e: {"loss": -e}}
    settings = replace(settings, batch_size=4, keep="last")
    found["sentences"] = facts(bert(), "sentences", lambda m, batch: m(**batch).loss, **classified)
    found["stopped"] = facts(gpt2(), "stopped", stopped)
    found["continued"] = facts(gpt2(), "stopped", smoothed)
    calls = 0
    if "RANK" in os.environ:
        found["broken"] = facts(gpt2(), "broken", broken)
    return found


if __name__ == "__main__":
    sys.path.insert(0, str(CODE))
    outcome = runs(Path(sys.argv[1]))
    Path(sys.argv[1], f"process-{os.environ['RANK']}.json").write_text(json.dumps(outcome))
    from runs.execute import leave_process_group

    leave_process_group()
