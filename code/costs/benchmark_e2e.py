"""What is timed on E2E: a training step of GPT-2 small, decoding, the metrics; each against a peer.

The step's weights are random: speed does not depend on them. Row lengths follow E2E's development set in GPT-2's
tokens: 31.5 +- 6.8 of context and 27.7 +- 7.9 of completion, separator and end included. Their correlation is that of
the training set in gpt2-mini's tokens.
"""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import numpy as np
import torch
from peft import LoraConfig, get_peft_model
from pycocoevalcap.meteor.meteor import Meteor
from torch import Tensor, nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    LogitsProcessor,
    LogitsProcessorList,
    PreTrainedModel,
    StoppingCriteria,
    StoppingCriteriaList,
)
from transformers.trainer_pt_utils import LabelSmoother

from costs.timing import Step, interleave, memory_above_weights
from lora import LoRAConfig, add_lora
from models import base, load_model, load_tokenizer
from tasks.e2e import data as e2e_data
from tasks.e2e import meteor
from tasks.e2e import metrics as e2e_metrics
from tasks.e2e.beam_search import DecodingSettings, end_token_ids, generate
from tasks.e2e.data import OFFICIAL_LENGTH
from tasks.e2e.loss import completion_loss
from tasks.e2e.ptb_tokenizer import ptb_tokenize
from training.batches import IGNORED, Batch, pad_right

BATCH = 8
LABEL_SMOOTHING = 0.1
Rows = list[dict[str, list[int]]]


def e2e_like_rows(number: int, vocabulary: int) -> Rows:
    """Random tokens with E2E's lengths: a longer context has a longer completion (correlation 0.7)."""
    pick = np.random.default_rng(0)
    rows = []
    for facts, words in pick.multivariate_normal([0, 0], [[1, 0.7], [0.7, 1]], number):
        context = int(np.clip(31.5 + 6.8 * facts, 15, 41))
        completion = int(np.clip(27.7 + 7.9 * words, 7, 84))
        ids = pick.integers(1, vocabulary, context + completion).tolist()
        rows.append({"input_ids": ids, "labels": [IGNORED] * context + ids[context:]})
    return rows


def full_logits_loss(model: nn.Module, batch: Batch) -> Tensor:
    """Trainer's loss with `label_smoothing_factor=0.1`: logits at every position of the padded batch."""
    return LabelSmoother(LABEL_SMOOTHING)(model(input_ids=batch["input_ids"]), batch["labels"], shift_labels=True)


def training_step(name: str) -> Step:
    """One optimizer step on the next batch: `ours`, `peft` (full logits, padded to the longest), `official` (512)."""
    torch.manual_seed(0)
    as_on_the_hub = {} if name == "ours" else {"activation_function": "gelu_new"}
    model = GPT2LMHeadModel(GPT2Config(**base("gpt2").shape | as_on_the_hub))
    if name == "ours":
        add_lora(model, LoRAConfig(rank=4, alpha=32, dropout=0.1))
    else:
        settings = {"r": 4, "lora_alpha": 32, "lora_dropout": 0.1, "target_modules": ["c_attn"], "fan_in_fan_out": True}
        model = get_peft_model(model, LoraConfig(**settings))
    model.train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)
    random_rows = e2e_like_rows(BATCH * 50, 50257)
    rows = sorted(random_rows, key=lambda row: len(row["input_ids"]))
    turn = 0

    def step() -> None:
        nonlocal turn
        start = 19 * turn % 50 * BATCH  # short and long batches in turn
        turn += 1
        if name == "ours":  # batches by length, as in training
            loss = completion_loss(model, pad_right(rows[start : start + BATCH]), LABEL_SMOOTHING)
        else:
            chosen = random_rows[start : start + BATCH]
            batch = pad_right(chosen, OFFICIAL_LENGTH if name == "official" else None)
            loss = full_logits_loss(model, batch)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def step(repetitions: int, data_dir: Path | None = None) -> dict[str, float]:
    variants = {name: training_step(name) for name in ("ours", "peft")}
    seconds = interleave(variants, repetitions, warmup=2)
    slow = interleave({"ours": variants["ours"], "official": training_step("official")}, max(3, repetitions // 5))
    memory = {name: memory_above_weights(training_step, name) for name in ("ours", "peft")}
    return {
        "PEFT, full logits, padded to the longest / ours (time)": seconds["peft"] / seconds["ours"],
        "padded to 512 / ours (time)": slow["official"] / slow["ours"],
        "ours / PEFT (peak memory above the weights)": memory["ours"] / memory["peft"],
        "seconds a step, ours": seconds["ours"],
        "seconds a step, PEFT": seconds["peft"],
        "seconds a step, padded to 512": slow["official"],
        "GiB above the weights, ours": memory["ours"] / 2**30,
        "GiB above the weights, PEFT": memory["peft"] / 2**30,
    }


class OnlyTheBestCandidates(StoppingCriteria):
    """Ends each candidate below the `beams` best, so that `generate` does not promote it in place of an ended one."""

    def __init__(self, beams: int, candidates: int):
        self.beams, self.candidates = beams, candidates

    def __call__(self, input_ids: Tensor, scores: Tensor, **_: object) -> Tensor:
        return torch.arange(len(input_ids), device=input_ids.device) % self.candidates >= self.beams


class NoRepeatAmongGenerated(LogitsProcessor):
    """Forbids the generated tokens' n-grams, not the prompt's, and normalises what is left."""

    def __init__(self, n: int, prompt_length: int):
        self.n, self.prompt_length = n, prompt_length

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        for row, tokens in enumerate(input_ids[:, self.prompt_length :].tolist()):
            for start in range(len(tokens) - self.n + 1):
                *head, last = tokens[start : start + self.n]
                if head == tokens[len(tokens) - self.n + 1 :]:
                    scores[row, last] = -torch.inf
        return scores.log_softmax(-1)


def transformers_beam_search(
    model: PreTrainedModel,
    prompts: list[list[int]],
    ends: list[int],
    settings: DecodingSettings,
    own_refill: bool = False,
    own_ban: bool = False,
) -> list[list[int]]:
    """The answers of `model.generate` without its differences from the official search (beam_search.py).

    `own_refill` leaves it its own way of replacing ended beams, `own_ban` its own way of forbidding n-grams.
    """
    longest = max(map(len, prompts))
    ids = torch.tensor([[0] * (longest - len(prompt)) + prompt for prompt in prompts])
    mask = torch.tensor([[0] * (longest - len(prompt)) + [1] * len(prompt) for prompt in prompts])
    processors = [] if own_ban else [NoRepeatAmongGenerated(settings.no_repeat_ngram, longest)]
    criteria = [] if own_refill else [OnlyTheBestCandidates(settings.beams, settings.beams * (1 + len(ends)))]
    outputs = model.generate(
        ids, attention_mask=mask, num_beams=settings.beams, do_sample=False, early_stopping="never",
        length_penalty=settings.length_penalty, max_new_tokens=settings.max_new_tokens, eos_token_id=ends,
        pad_token_id=0, no_repeat_ngram_size=settings.no_repeat_ngram if own_ban else 0,
        logits_processor=LogitsProcessorList(processors), stopping_criteria=StoppingCriteriaList(criteria),
    )[:, longest:].tolist()  # fmt: skip
    answers = []
    for tokens in outputs:
        ended = [place for place, token in enumerate(tokens) if token in ends]
        answers.append(tokens[: ended[0] + 1] if ended else tokens)
    return answers


def decode(repetitions: int, data_dir: Path | None = None, inputs: int = 64) -> dict[str, float]:
    """Decode E2E test contexts with beam 10: in batches, one by one, and one by one with transformers."""
    model, tokenizer = load_model("gpt2-mini").eval(), load_tokenizer("gpt2-mini")
    groups = e2e_data.group_by_context(e2e_data.load_e2e("test", "lora", data_dir))
    contexts = [group.context for group in groups][:inputs]
    settings, ends = DecodingSettings(), end_token_ids(tokenizer)
    texts: dict[str, list[str]] = {}

    def batched() -> None:
        texts["batched"] = [g.text for g in generate(model, tokenizer, contexts, settings, progress=False)]

    def one_by_one() -> None:
        texts["single"] = [generate(model, tokenizer, [c], settings, progress=False)[0].text for c in contexts]

    @torch.inference_mode()
    def transformers() -> None:
        texts["transformers"] = []
        for context in contexts:
            prompt = [*tokenizer.encode(context, add_special_tokens=False), tokenizer.eos_token_id]
            [answer] = transformers_beam_search(model, [prompt], ends, settings)
            texts["transformers"].append(tokenizer.decode([t for t in answer if t not in ends]).strip())

    calls = {"batched": batched, "single": one_by_one, "transformers": transformers}
    seconds = interleave(calls, repetitions, warmup=0)
    same = {
        name: np.mean([a == b for a, b in zip(texts["batched"], texts[name], strict=True)])
        for name in ("single", "transformers")
    }
    return {
        "one `generate` of transformers an input / batched (time)": seconds["transformers"] / seconds["batched"],
        "one call of ours an input / batched (time)": seconds["single"] / seconds["batched"],
        "share of same outputs, batched and transformers": same["transformers"],
        "share of same outputs, batched and one by one": same["single"],
        "seconds, batched": seconds["batched"],
        "seconds, one by one": seconds["single"],
        "seconds, one `generate` of transformers an input": seconds["transformers"],
    }


def metrics(repetitions: int, data_dir: Path | None = None) -> dict[str, float]:
    """Score the real test set: the first reference of each input is its output, the others its references."""
    groups = [
        g for g in e2e_data.group_by_context(e2e_data.load_e2e("test", "lora", data_dir)) if len(g.references) > 1
    ]
    outputs, references = [g.references[0] for g in groups], [g.references[1:] for g in groups]

    def without_meteor() -> None:
        with mock.patch.object(meteor.METEOR, "score", return_value=None):
            e2e_metrics.score(outputs, references)

    results = [[" ".join(ptb_tokenize(text))] for text in outputs]
    gold = [[" ".join(ptb_tokenize(text)) for text in group] for group in references]
    jar = Meteor()  # pycocoevalcap's own wrapper of the same jar

    def jar_alone() -> None:
        jar.compute_score(dict(enumerate(gold)), dict(enumerate(results)))

    calls = {"with": lambda: e2e_metrics.score(outputs, references), "without": without_meteor, "jar": jar_alone}
    seconds = interleave(calls, repetitions)
    return {
        "seconds without METEOR": seconds["without"],
        "seconds with METEOR": seconds["with"],
        "seconds of METEOR's jar alone": seconds["jar"],
        "seconds above the jar": seconds["with"] - seconds["jar"],
        "all / jar alone (time)": seconds["with"] / seconds["jar"],
    }
