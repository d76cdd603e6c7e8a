"""Whether a GPU can be trusted with the paper's runs, and what they will take on it: `make gpu-check`, six minutes.

The tests that need a GPU; the losses of 100 steps of `gpt2-mini` beside the CPU's; 20 steps with LoRA, with PEFT's and
with full fine-tuning of each of the paper's models at the batches of its table; the decoding of 64 inputs. Nothing is
downloaded. What does not fit the GPU is said first and left out, and so is what the time does not allow. The
measurements go to `results/gpu/<device>.json`, by which the estimates are corrected from then on.
"""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from functools import partial
from importlib.util import find_spec
from statistics import fmean
from typing import Any, TypeVar

import torch

import files
from costs.estimate import estimate
from costs.gpu_losses import TOLERANCE, Comparison, compared
from costs.gpu_measurements import MeasuredDecoding, MeasuredStep, path_of
from costs.gpu_steps import decided, measured_steps_of, rows_with_most_steps
from experiments.catalogue import EXPERIMENTS
from experiments.settings import Experiment, Settings
from models import architecture, load_tokenizer
from tasks.catalogue import TASKS
from tasks.e2e.beam_search import DecodingSettings, generate
from tasks.e2e.data import group_by_context, load_builtin
from training.memory import GIBIBYTE, card_bytes, contexts_at_once
from training.precision import set_products

Result = TypeVar("Result")
SECONDS = 340  # of the six minutes; the rest is for the imports before
VERDICT_SECONDS = 40  # of these, for the hours of every table
TEST_SECONDS = 150  # at most
STEPS, LOSS_STEPS, INPUTS = 20, 100, 64
TESTS = "tests/test_gpu.py"
PEERS = ("peft", "loralib")  # the packages of costs/benchmark_training.py


def require_gpu() -> str:
    """The name of this machine's GPU; ValueError, which says why, where there is none."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    why = "the driver shows none (see nvidia-smi)"
    if torch.version.cuda is None:
        why = f"this torch, {torch.__version__}, is built without CUDA: install one that has it"
    raise ValueError(f"expected a CUDA GPU, found none: {why}. Nothing was measured and nothing was written")


@dataclass
class GpuCheck:
    """One check of a device: what was measured, what was left out and why, what went wrong."""

    device: str
    say: Callable[[str], None] = print
    seconds: float = SECONDS
    steps: list[MeasuredStep] = field(default_factory=list)
    decoding: list[MeasuredDecoding] = field(default_factory=list)
    losses: Comparison | None = None
    tests: str | None = None  # pytest's last line
    left_out: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.started = time.monotonic()
        self.deadline = self.started + self.seconds - VERDICT_SECONDS
        self.missing = [package for package in PEERS if find_spec(package) is None]

    def run(self, provenance: dict[str, Any]) -> None:
        """Do all of it, and write the file; RuntimeError at the end where something went wrong."""
        files.check_room(path_of(self.device).parent)
        memory = card_bytes()
        if memory:
            free = torch.cuda.mem_get_info()[0]
            self.say(f"{self.device}: {memory / GIBIBYTE:.1f} GiB, {free / GIBIBYTE:.1f} of them free")
        chosen = self.planned()
        self.run_tests()
        self.compare_losses()
        for experiment, settings in chosen:
            self.measure(experiment, settings)
        path = path_of(self.device)
        self.say(f"{'replaced' if path.exists() else 'written'}: {path}")
        files.write_json(path, self.content() | provenance)
        for line in table_lines():
            self.say(line)
        for line in self.left_out:
            self.say(f"left out: {line}")
        self.say(f"{time.monotonic() - self.started:.0f} seconds in all")
        if self.problems:
            raise RuntimeError(f"{self.device} is not to be trusted with a run: " + "; ".join(self.problems))

    def content(self) -> dict[str, Any]:
        """What the file says."""
        memory = card_bytes()
        return {
            "device": self.device, "memory_gib": memory and round(memory / GIBIBYTE, 2), "cuda": torch.version.cuda,
            "steps": [asdict(step) for step in self.steps], "decoding": [asdict(one) for one in self.decoding],
            "losses": self.losses and asdict(self.losses), "tests": self.tests, "left_out": self.left_out,
            "problems": self.problems, "seconds": round(time.monotonic() - self.started),
        }  # fmt: skip

    def planned(self) -> list[tuple[Experiment, Settings]]:
        """The experiments whose steps fit the GPU, with what its memory decides; the others are said and left out."""
        chosen = []
        for experiment in rows_with_most_steps():
            try:
                chosen.append((experiment, decided(experiment.settings)))
            except ValueError as error:
                self.leave_out(f"{experiment.name}, which this GPU cannot run: {error}")
        for package in self.missing:
            self.leave_out(f"PEFT's steps: {package} is not installed; pip install -r tests/requirements.txt")
        return chosen

    def leave_out(self, what: str) -> None:
        """Note what is not measured, and say it at once."""
        self.left_out.append(what)
        self.say(f"not measured: {what}")

    def attempt(self, name: str, call: Callable[[], Result], needed: bool = True) -> Result | None:
        """What the call returns; None where the time is used or it fails, which is noted by its name.

        A failure is a problem of this machine if the call is `needed`.
        """
        if time.monotonic() > self.deadline:
            self.leave_out(f"{name}: the time was used")
            return None
        try:
            return call()
        except (RuntimeError, FloatingPointError) as error:
            failure = f"{name}: {type(error).__name__}, {str(error)[:200]}"
            if needed:
                self.problems.append(failure)
            else:
                self.leave_out(failure)
        finally:
            gc.collect()
            torch.cuda.empty_cache()  # the memory of a model that is gone, for the next one; without a GPU nothing
        return None

    def run_tests(self) -> None:
        """The tests that need a GPU, in a process of their own."""
        if find_spec("pytest") is None:
            return self.leave_out("the tests: pytest is not installed; pip install -r tests/requirements.txt")
        # A warning of another driver or version is no failure here.
        command = [sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-W", "default", "-p", "no:cacheprovider", TESTS]
        try:
            ended = subprocess.run(command, cwd=files.ROOT, capture_output=True, text=True, timeout=TEST_SECONDS)
        except subprocess.TimeoutExpired:
            return self.leave_out(f"the tests: they did not end within {TEST_SECONDS} seconds")
        self.tests = (ended.stdout.strip().splitlines() or [ended.stderr.strip()[-200:]])[-1].strip("= ")
        self.say(f"{TESTS}: {self.tests}")
        if ended.returncode:
            self.say(ended.stdout[-4000:])
            self.problems.append(f"tests that need a GPU failed ({self.tests})")

    def compare_losses(self) -> None:
        """The first losses of gpt2-mini, here and on the CPU."""
        self.losses = self.attempt(f"{LOSS_STEPS} losses beside the CPU's", lambda: compared(LOSS_STEPS))
        if self.losses is None:
            return
        self.say(
            f"losses of {self.losses.steps} steps of gpt2-mini, {self.losses.first:.3f} to {self.losses.last:.3f}: "
            f"{self.losses.largest:.1e} from the CPU's at most, relative; {TOLERANCE:.0e} is allowed"
        )
        if not self.losses.agrees:
            self.problems.append(f"its losses differ from the CPU's by {self.losses.largest:.1e}")

    def measure(self, experiment: Experiment, settings: Settings) -> None:
        """The steps of one experiment, PEFT's beside LoRA's, and decoding beside a language model's."""
        for by_peft in [False, True] if settings.method == "lora" and not self.missing else [False]:
            name = f"{experiment.name}{' by PEFT' * by_peft}"
            call = partial(measured_steps_of, settings, STEPS, self.deadline, by_peft)
            measured = self.attempt(name, call, needed=not by_peft)
            if measured is None:
                continue
            self.steps += measured
            if len(measured) < 2:
                self.leave_out(f"{name}: the time was used after {len(measured)} of 2 lengths of rows")
            for step in measured:
                recomputed = ", its forward pass recomputed" if step.gradient_checkpointing else ""
                took = f"{1e3 * step.seconds:.1f} ms a step, {step.gigabytes:.1f} GiB{recomputed}"
                self.say(f"{name}, {step.batch_size} rows of {step.tokens} tokens: {took}")
        if TASKS[settings.task].outputs is None and settings.method == "lora":
            call = partial(measured_decoding, settings, INPUTS)
            if one := self.attempt(f"{settings.model}'s decoding", call):
                self.decoding.append(one)
                self.say(f"{one.model} decodes {one.inputs} inputs to {one.tokens} tokens in {one.seconds:.1f} s")


def measured_decoding(settings: Settings, inputs: int) -> MeasuredDecoding:
    """What the decoding of so many inputs takes with random weights, whose answers seldom end before the last token."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    set_products(settings)
    torch.manual_seed(0)
    model = architecture(settings.model, None, device).eval()
    tokenizer = load_tokenizer("gpt2-mini")  # comes with the code; its words are the first of any vocabulary
    contexts = [each.context for each in group_by_context(load_builtin("train"))][:inputs]
    decoding = DecodingSettings.of(settings, contexts_at_once(model, settings.beams, settings.max_new_tokens))
    started = time.monotonic()
    answers = generate(model, tokenizer, contexts, decoding, progress=False)
    seconds, tokens = time.monotonic() - started, round(fmean(answer.tokens for answer in answers))
    return MeasuredDecoding(settings.model, settings.precision, inputs, settings.beams, tokens, round(seconds, 3))


def table_lines() -> list[str]:
    """For each table and base at `paper` scale: whether this machine can run it, and in how many hours, in words."""
    rows_by_part: dict[tuple[str, str], list[Experiment]] = {}
    for e in EXPERIMENTS.values():
        if (e.scale, e.variant) == ("paper", "paper") and re.fullmatch(r"table\d+|curves", e.table):
            rows_by_part.setdefault((e.table, e.settings.model), []).append(e)
    return [f"{table}, {base}: {_verdict(rows)}" for (table, base), rows in rows_by_part.items()]


def _verdict(rows: list[Experiment]) -> str:
    refused, costs = {}, []
    for e in rows:
        try:
            decided(e.settings)
            costs.append(estimate(e.settings, "paper", []))
        except ValueError as error:
            refused[e.name] = str(error)
    reason = f"; {len(refused)} cannot, such as {min(refused)}: {refused[min(refused)]}" if refused else ""
    if not costs:
        return f"this machine can run none of {len(rows)} rows{reason}"
    by_steps = sum("measured steps" in cost.basis for cost in costs)
    hours, gigabytes = sum(cost.minutes for cost in costs) / 60, max(cost.gigabytes for cost in costs)
    return (
        f"this machine can run {len(costs)} of {len(rows)} rows in {hours:.1f} hours with one seed, at most "
        f"{gigabytes:.1f} GiB ({by_steps} by measured steps, {len(costs) - by_steps} by arithmetic){reason}"
    )
