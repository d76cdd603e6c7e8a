"""The one training loop: `transformers.Trainer` with the protocol of the paper on top.

Appendix D.3 and the official code (microsoft/LoRA at c4593f0, examples/NLG/src): AdamW with its
epsilon inside the bias correction, linear warm-up and decay, no clipping for GPT-2, a loss that
is a token mean over the batch. Two things differ from the official loop. Batches are
formed by length: padding to 512 never touched the loss, though other rows share a step. Logits are
computed only where the loss is: elsewhere their gradient is zero.

Checkpoints hold what is trained, never the frozen base. A run that is stopped continues where it
was, with the same batches, and on a CPU ends in the same weights, to the last bit.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer, TrainingArguments
from transformers.trainer import DEFAULT_PROGRESS_CALLBACK
from transformers.trainer_callback import PrinterCallback

from experiments.settings import Job, Settings
from methods.rank_changes import RankChanges, RankSchedule, ended
from methods.stacked_lora import resize
from training.batches import Batch, RowsByLength, pad_right, share_of
from training.checkpoints import Bar, Sitting, TrainingInterrupted, newest_checkpoint, numbers_alone
from training.machine import forget_peak_memory
from training.memory import recomputes
from training.optimizer import OfficialAdamW, first_not_finite, gradients, parameter_groups, regroup, trained_state
from training.precision import uses_bfloat16

WEIGHTS_FILE = "trained_parameters.safetensors"  # of a checkpoint
LOGGED = {"loss", "eval_loss", "validation_loss", "ranks"}  # what the record's `history` keeps


class TrainingDiverged(FloatingPointError):
    """A loss, gradient or weight is not finite; the message names it, the step and the state that was kept."""


class ShareDone(SystemExit):
    """Ends all processes of `accelerate launch` but the first after training: the first alone evaluates."""


@dataclass
class TrainingResult:
    """The outcome of a training, as the record has it."""

    steps: int
    training_seconds: float  # with each epoch's validation, over all sittings of an interrupted run
    training_tokens: int
    peak_memory_gib: float  # of the sitting that took most
    kept_step: int  # the step whose weights the model has now
    history: list[dict[str, Any]]


def through_wrapper(model: nn.Module, loss: Callable[[nn.Module, Batch], Tensor], batch: Batch) -> Tensor:
    """`loss` of the model inside DistributedDataParallel, computed within the wrapper's own `forward`.

    Gradients are averaged over processes only for what goes through that `forward`. A loss may call
    parts of the model: `completion_loss` leaves out the head where there is no label.
    """
    inner = model.module
    forward = inner.forward

    def once(batch: Batch) -> Tensor:
        inner.forward = forward
        return loss(inner, batch)

    inner.forward = once
    return model(batch)


class ProtocolTrainer(Trainer):
    """Trainer whose loss, validation, batches, optimizer and checkpoints are the protocol's."""

    def __init__(
        self,
        settings: Settings,
        loss: Callable[[nn.Module, Batch], Tensor],
        validate: Callable[[nn.Module, int], dict[str, float]],
        schedule: RankSchedule | None = None,
        **others: Any,
    ):
        self.settings, self.loss, self.validate, self.schedule = settings, loss, validate, schedule
        self.tokens = 0
        super().__init__(**others)
        self.model_accepts_loss_kwargs = False  # the loss is a mean over each batch

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler:
        lengths = [len(row["input_ids"]) for row in self.train_dataset]
        return RowsByLength(lengths, self.settings.batch_size, self.args.seed)

    def get_train_dataloader(self) -> DataLoader:
        """The same whole batches in every process; `compute_loss` takes the process's share of the rows."""
        loader = super().get_train_dataloader()
        if self.args.world_size > 1:
            shard = loader.batch_sampler
            shard.num_processes, shard.process_index, shard.even_batches = 1, 0, False
        return loader

    def anywhere(self, *flags: bool) -> list[bool]:
        """For each flag, whether any process has set it. All get the same answer, since they stop and save together."""
        up = torch.tensor(flags, dtype=torch.float32, device=self.args.device)
        return (self.accelerator.reduce(up) > 0).tolist()

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        if self.optimizer is None:
            settings = self.settings
            self.optimizer = OfficialAdamW(self.groups(), epsilon=settings.adam_epsilon, betas=settings.adam_betas)
        return self.optimizer

    def groups(self) -> list[dict[str, Any]]:
        factors = self.schedule.rate_factors(self.model) if self.schedule else {}
        return parameter_groups(self.model, self.settings, self.get_decay_parameter_names(self.model), factors)

    def regroup(self) -> None:
        regroup(self.optimizer, self.lr_scheduler, self.groups())

    def _init_training_state(self, max_steps: int, steps_per_epoch: int, epochs: int, *others: Any) -> tuple[int, int]:
        place = super()._init_training_state(max_steps, steps_per_epoch, epochs, *others)
        if best := self.state.best_global_step:  # the folder may have been moved
            self.state.best_model_checkpoint = str(Path(self.args.output_dir) / f"checkpoint-{best}")
        return (epochs, 0) if ended(self.state.log_history) else place  # as if all epochs were trained

    def unlogged(self) -> dict[str, float]:
        """The sum of the losses since the last log, a mean over processes, and that log's step."""
        loss = self.accelerator.reduce(self._tr_loss, "mean").item()
        return {"loss": loss, "since": self._globalstep_last_logged}

    def continue_log(self, loss: float, since: int) -> None:
        """Take up what `unlogged` gave when the checkpoint was saved; Trainer itself forgets it at a stop."""
        self._tr_loss += loss
        self._globalstep_last_logged = since

    def compute_loss(self, model: nn.Module, inputs: Batch, return_outputs: bool = False, **_: Any) -> Tensor:
        self.tokens += inputs["input_ids"].numel()
        share, weight = share_of(inputs, self.args.process_index, self.args.world_size)
        with self.accelerator.autocast():  # a loss need not go through the model's own `forward`, which has it
            loss = self.loss(model, share) if model is self.model else weight * through_wrapper(model, self.loss, share)
        whole = self.accelerator.reduce(loss.detach(), "mean")
        if not torch.isfinite(whole):
            weights = {name: p.detach() for name, p in self.model.named_parameters()}  # frozen ones too
            self.require_finite(weights, f"after step {self.state.global_step}")  # else the loss is
            raise self.diverged(f"the loss is {whole.item()} at step {self.state.global_step + 1}")
        return loss

    def training_step(self, *arguments: Any, **others: Any) -> Tensor:
        loss = super().training_step(*arguments, **others)
        self.require_finite(gradients(self.model), f"at step {self.state.global_step + 1}")
        return loss

    def require_finite(self, tensors: dict[str, Tensor], when: str) -> None:
        if name := first_not_finite(tensors):
            raise self.diverged(f"{name} is not finite {when}")

    def diverged(self, what: str) -> TrainingDiverged:
        kept = newest_checkpoint(Path(self.args.output_dir))
        return TrainingDiverged(
            f"{what} of {self.state.max_steps}; the last good state is {kept or 'the one before training'}. "
            f"Try a lower learning rate than {self.settings.learning_rate:g}, or clipping (max_grad_norm)"
        )

    def _maybe_log_save_evaluate(self, *arguments: Any, **others: Any) -> None:
        if self.control.should_evaluate or self.control.should_save:  # no loss has seen the last step yet
            self.require_finite(trained_state(self.model), f"after step {self.state.global_step}")
        super()._maybe_log_save_evaluate(*arguments, **others)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        measured = self.validate(self.model, math.ceil(self.state.epoch))  # a schedule may end within an epoch
        if odd := [f"{name} {value}" for name, value in measured.items() if not math.isfinite(value)]:
            raise FloatingPointError(f"the validation has {odd[0]}")
        metrics = {f"eval_{name}": value for name, value in measured.items()}
        self.log(metrics)
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, metrics)
        return metrics

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        folder = Path(output_dir)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(trained_state(self.model), folder / WEIGHTS_FILE)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: nn.Module | None = None) -> None:
        device = next(self.model.parameters()).device
        saved = load_file(Path(resume_from_checkpoint) / WEIGHTS_FILE, device=str(device))
        resize(self.model, saved)
        expected = set(trained_state(self.model))
        if set(saved) != expected:
            raise ValueError(
                f"the checkpoint {resume_from_checkpoint} is of another run: it has {len(saved)} trained tensors, "
                f"this one {len(expected)}. Delete the folder to start anew"
            )
        self.model.load_state_dict(saved, strict=False)

    def _load_best_model(self) -> None:
        self._load_from_checkpoint(self.state.best_model_checkpoint)


def train(
    model: nn.Module,
    rows: Dataset | list[dict[str, list[int]]],
    job: Job,
    loss: Callable[[nn.Module, Batch], Tensor],
    validate: Callable[[nn.Module, int], dict[str, float]],
    best: tuple[str, bool] = ("loss", False),
    collate: Callable[[list[dict[str, list[int]]]], Batch] = pad_right,
    schedule: RankSchedule | None = None,
) -> TrainingResult:
    """Train the parameters that require a gradient; `job.folder` holds the checkpoints.

    `loss(model, batch)` is minimised; `validate(model, epoch)` is measured after every epoch. If the best is kept,
    `best` says by which number and whether higher is better. Training continues from the newest checkpoint.
    Raises TrainingDiverged for a loss or gradient that is not finite, for such weights before they are validated or
    saved, and where a validation raises FloatingPointError; TrainingInterrupted after SIGINT or SIGTERM, once the state
    is saved; ValueError for a checkpoint of another run or with more than numbers, and where the GPU is too small.

    Under `accelerate launch` the processes share each batch's rows and take the steps of one process: the first returns
    the result, the others end with ShareDone. A `schedule` changes ranks; it raises ValueError with several processes.
    """
    forget_peak_memory()
    settings, folder = job.settings, job.folder
    steps_per_epoch = math.ceil(len(rows) / settings.batch_size)
    keep_best = settings.keep == "best-epoch"
    arguments = TrainingArguments(
        output_dir=str(folder),
        per_device_train_batch_size=settings.batch_size,
        num_train_epochs=settings.epochs,
        learning_rate=settings.learning_rate,
        lr_scheduler_type=settings.learning_rate_schedule,
        warmup_steps=settings.warmup_steps or settings.warmup_ratio,  # below 1: a share of all steps
        bf16=uses_bfloat16(settings),
        max_grad_norm=settings.max_grad_norm,
        seed=job.seed,
        eval_strategy="epoch",
        save_strategy="epoch",
        save_total_limit=None,  # `Sitting` removes old ones
        load_best_model_at_end=keep_best,
        metric_for_best_model=best[0] if keep_best else None,
        greater_is_better=best[1] if keep_best else None,
        logging_steps=max(1, steps_per_epoch * settings.epochs // 50),
        logging_nan_inf_filter=False,
        report_to="none",
        remove_unused_columns=False,
        use_cpu=not torch.cuda.is_available(),  # said outright, or two processes would not know of each other
        ddp_find_unused_parameters=False,  # every trained parameter has a part in every loss
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    if schedule and arguments.world_size > 1:
        raise ValueError(
            f"a rank that changes during training takes one process, found {arguments.world_size}: gradients are "
            "averaged over processes for the pairs of the first step only. Start it without `accelerate launch`"
        )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # one GPU a process: DataParallel would multiply the batch
    longest = collate([max(rows, key=lambda row: len(row["input_ids"]))])["input_ids"].shape[1]
    if recomputes(model, settings, longest):
        model.gradient_checkpointing_enable({"use_reentrant": False})  # the inputs of a frozen base need no gradient
    trainer = ProtocolTrainer(
        settings,
        loss,
        validate,
        schedule,
        model=model,
        args=arguments,
        train_dataset=rows,
        eval_dataset=rows,  # asked for by Trainer, not looked at: `evaluate` calls `validate`
        data_collator=collate,
    )
    trainer.remove_callback(DEFAULT_PROGRESS_CALLBACK)  # another one in a notebook
    trainer.remove_callback(PrinterCallback)
    sitting = Sitting(trainer, checkpoint := newest_checkpoint(folder))
    trainer.add_callback(Bar())
    if schedule:
        trainer.add_callback(RankChanges(schedule, trainer.regroup))
    trainer.add_callback(sitting)
    try:
        with sitting.listening(), numbers_alone(checkpoint):
            trainer.train(resume_from_checkpoint=checkpoint)
    except FloatingPointError as error:  # of a validation, a schedule's too, which knows no step
        known = isinstance(error, TrainingDiverged)
        raise error if known else trainer.diverged(f"{error} after step {trainer.state.global_step}") from error
    trainer.accelerator.wait_for_everyone()
    if not trainer.is_world_process_zero():
        raise ShareDone
    if sitting.stop:
        raise TrainingInterrupted(f"stopped after step {trainer.state.global_step}; run the same command to continue")
    spent = sitting.spent()
    return TrainingResult(
        steps=trainer.state.global_step,
        training_seconds=round(spent["seconds"], 1),
        training_tokens=int(spent["tokens"]),
        peak_memory_gib=round(spent["peak_memory_gib"], 3),
        kept_step=(trainer.state.best_global_step if keep_best else None) or trainer.state.global_step,
        history=[entry for entry in trainer.state.log_history if LOGGED & entry.keys()],
    )
