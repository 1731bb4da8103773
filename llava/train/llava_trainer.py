"""transformers' Trainer for LLaVA: its batches, its learning rates, its files, and what it logs."""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers.trainer_utils import EvalLoopOutput

from llava.constants import IGNORE_INDEX
from llava.train.checkpointed_trainer import CheckpointedTrainer, StopAtBadSamples
from llava.train.data.loaders import make_loader, share_batches
from llava.train.data.token_batches import TokenBatchSampler
from llava.train.left_out import LeftOutLog
from llava.train.plan import plan_steps, token_budget
from llava.train.sampler import LengthGroupedSampler as LengthGroupedSampler  # LLaVA's path of this and the next two
from llava.train.sampler import choose_sampler
from llava.train.sampler import get_modality_length_grouped_indices as get_modality_length_grouped_indices
from llava.train.sampler import split_to_even_chunks as split_to_even_chunks
from llava.train.saving import refuse_diverged
from llava.train.throughput import BatchCounts, Throughput, gather_objects
from llava.train.training_arguments import forms_batches_by_tokens, read_field


class LLaVATrainer(CheckpointedTrainer):
    """Trains the projector, the whole model, or adapters."""

    _total_loss_scalar: float
    _steps_without_loss = 0
    """Steps of the log lines of this run whose loss is not finite."""

    def __init__(
        self,
        model: Any = None,
        args: Any = None,
        *,
        tokenizer: Any = None,
        lengths: Any = None,
        max_bad_samples: int = 10,
        **kwargs: Any,
    ) -> None:
        """
        Args:
            model: see transformers' Trainer.
            args: `TrainingArguments`, or a fork's own, whose missing fields have LLaVA's defaults;
                `tune_mm_mlp_adapter`, if it has it, saves the projector alone.
            tokenizer: LLaVA's name for `processing_class`.
            lengths: int (N,), tokens of each sample, text and visual; needed for `batch_tokens` and `pack`.
            max_bad_samples: most malformed or unreadable samples to leave out before the run ends.
            **kwargs: of transformers' Trainer.

        Raises:
            ValueError: the arguments would take what training needs out of the samples.
        """
        if getattr(args, "remove_unused_columns", False):  # transformers' default, which LLaVA's arguments turn off
            raise ValueError("remove_unused_columns is True, which takes the images out of samples; it must be False")
        kwargs.setdefault("processing_class", tokenizer)
        with quantized_is_trainable(model, bool(getattr(args, "tune_mm_mlp_adapter", False))):
            super().__init__(model=model, args=args, **kwargs)
        self.lengths = lengths
        malformed = getattr(getattr(self.train_dataset, "samples", None), "malformed", ())
        unmeasured = 0 if lengths is None else int((lengths == 0).sum())
        unused = len(malformed) + unmeasured
        self.throughput = Throughput(max_bad_samples, malformed=malformed, unused=unused)
        self.add_callback(StopAtBadSamples(self))
        self.evaluator: Any = None
        self._evaluated: list[tuple[float, int]] = []
        self._eval_counts = BatchCounts()
        self._left_out = LeftOutLog("left out of the evaluation", "eval_dropped_samples")

    # Batches

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        sampler = choose_sampler(dataset, self.args, self._seed)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    @property
    def _seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    @property
    def plan(self) -> dict[str, Any]:
        """What decides on the samples of each step; see `plan_steps`."""
        return plan_steps(self.train_dataset, self.args, self._seed, self.lengths)

    def get_train_dataloader(self) -> DataLoader:
        """Builds the loader of training batches: of a number of samples, or of a number of tokens."""
        args = self.args
        if not forms_batches_by_tokens(args):
            return super().get_train_dataloader()
        if self.train_dataset is None or self.lengths is None:
            raise ValueError("batch_tokens and pack need the training data set and the lengths of its samples")
        sampler = TokenBatchSampler(
            self.lengths,
            token_budget(args),
            read_field(args, "model_max_length") if read_field(args, "pack") else None,
            args.world_size,
            args.process_index,
            args.gradient_accumulation_steps,
            self._seed,
        )
        return make_loader(self.train_dataset, sampler, self.data_collator, args)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """Builds the loader of an evaluation, which repeats no sample to fill the last batches of all processes."""
        args, dataset = self.args, self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):  # the name of one of several
            dataset = self.eval_dataset[dataset]
        batches = share_batches(len(dataset), args.eval_batch_size, args.process_index, args.world_size)
        return make_loader(dataset, batches, self.data_collator, args)

    def _prepare_inputs(self, inputs: dict[str, Any]) -> dict[str, Any]:
        counts = inputs.pop("counts", None)
        if counts is not None and self.model.training:
            self.throughput.add(counts)
        elif counts is not None:
            self._eval_counts += counts
        return super()._prepare_inputs(inputs)

    def _get_num_items_in_batch(self, *args: Any) -> Any:
        """Counts the target tokens of a step; at least 1, since a step whose samples are all left out has none."""
        count = super()._get_num_items_in_batch(*args)
        return count.clamp(min=1) if isinstance(count, Tensor) else count and max(count, 1)

    # Optimizer

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        """Builds the optimizer, with another learning rate for the projector where `mm_projector_lr` is set."""
        rate = read_field(self.args, "mm_projector_lr")
        optimizer = super().create_optimizer(model)
        if rate is not None and not any("is_projector" in group for group in optimizer.param_groups):
            trained: Any = self.model if model is None else model
            projector = {id(weight) for name, weight in trained.named_parameters() if "mm_projector" in name}
            for group in list(optimizer.param_groups):
                own = [weight for weight in group["params"] if id(weight) in projector]
                if own:
                    group["params"] = [weight for weight in group["params"] if id(weight) not in projector]
                    rest = {name: value for name, value in group.items() if name != "params"}
                    optimizer.add_param_group({**rest, "params": own, "lr": rate, "is_projector": True})
        if self.is_fsdp_enabled:  # whose checkpoints of shards lose the settings of a group without weights
            optimizer.param_groups[:] = [group for group in optimizer.param_groups if group["params"]]
        return optimizer

    # Log and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds throughput, padding and memory to the log lines of training steps, and the projector's learning rate.

        Raises:
            ValueError: the loss is not finite, and neither are the weights: no later step would mend them.
        """
        if "loss" in logs:
            logs = logs | self._projector_rate() | self.throughput.report()
        super().log(logs, start_time)
        if not math.isfinite(logs.get("loss", 0.0)):  # the mean of all processes, which so agree to look
            refuse_diverged(self)

    def _maybe_log_save_evaluate(self, tr_loss: Tensor, *args: Any, **kwargs: Any) -> None:
        """Logs a loss that is not finite in one line, and starts the next line's sum, and the run's, without it.

        transformers subtracts a logged sum from itself, which leaves NaN of one that is not finite.
        """
        step, total = self._globalstep_last_logged, self._total_loss_scalar
        if step == self._step_before:
            self._steps_without_loss = 0
        super()._maybe_log_save_evaluate(tr_loss, *args, **kwargs)
        if self._globalstep_last_logged > step:
            tr_loss.zero_()
            if not math.isfinite(self._total_loss_scalar):
                self._total_loss_scalar = total
                self._steps_without_loss += self._globalstep_last_logged - step

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Ends a run; `train_loss` is the mean of the steps whose log lines have a finite loss, and of those after."""
        steps = self.state.global_step - self._step_before
        total = self._total_loss_scalar + self._tr_loss.item()
        used = steps - self._steps_without_loss
        self._steps_without_loss = 0
        self._tr_loss.zero_()
        self._total_loss_scalar = total * (steps / used) if used else math.nan if steps else total
        return super()._finalize_training(*args, **kwargs)

    @property
    def _step_before(self) -> int:
        """The step after which transformers begins the mean `train_loss`; older versions divide by all steps."""
        return int(getattr(self, "_initial_global_step", 0))

    def _get_learning_rate(self) -> float:
        """Finds the rate of the first weights that are trained; transformers would take that of an empty group."""
        trained = self._trained_groups
        if self.is_deepspeed_enabled or len(trained) == len(getattr(self.optimizer, "param_groups", [])):
            return super()._get_learning_rate()
        return float(trained[0]["lr"])

    @property
    def _trained_groups(self) -> list[dict[str, Any]]:
        """The optimizer's groups that hold weights: `create_optimizer` may leave one empty."""
        return [group for group in getattr(self.optimizer, "param_groups", []) if group["params"]]

    def _projector_rate(self) -> dict[str, float]:
        """Finds the projector's learning rate, where it has its own beside others."""
        groups = self._trained_groups
        own = [group["lr"] for group in groups if group.get("is_projector")]
        return {"projector_learning_rate": float(own[0])} if 0 < len(own) < len(groups) else {}

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """Measures the loss on the evaluation's samples, and the share of right answers to its questions."""
        with self.throughput.paused():
            metrics = super().evaluate(*args, **kwargs) if self.eval_dataset is not None else {}
            if self.evaluator is not None:
                answers = self.evaluator(self.model)
                self.log(answers)
                if not metrics:  # nothing else was evaluated, so that callbacks do not know yet
                    self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, answers)
                metrics |= answers
        return metrics

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> EvalLoopOutput:
        """Measures the mean loss of all target tokens, not the mean of batches."""
        self._evaluated, self._eval_counts = [], BatchCounts()
        kwargs["prediction_loss_only"] = True
        output = super().evaluation_loop(*args, **kwargs)
        mine = (sum(loss * count for loss, count in self._evaluated), self._eval_counts)
        total, counts = 0.0, BatchCounts()
        for own_total, own_counts in gather_objects(mine):
            total, counts = total + own_total, counts + own_counts
        if not counts.target_tokens:
            raise ValueError(f"no sample of the evaluation can be used: {[one.reason for one in counts.skipped[:3]]}")
        prefix = kwargs.get("metric_key_prefix", "eval")
        output.metrics[f"{prefix}_loss"] = total / counts.target_tokens
        output.metrics[f"{prefix}_target_tokens"] = counts.target_tokens
        output.metrics[f"{prefix}_dropped_samples"] = len(counts.skipped)
        for skipped in counts.skipped:
            self._left_out.add(skipped.reason)
        return output

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        """Computes the mean loss of this process's batch, and notes how many tokens it is the mean of.

        transformers would divide it by the tokens of all processes.
        """
        inputs = self._prepare_inputs(inputs)
        count = int((inputs["labels"][:, 1:] != IGNORE_INDEX).sum())
        with torch.no_grad(), self.compute_loss_context_manager():
            loss = self.compute_loss(model, inputs).detach().mean()
        if count:
            self._evaluated.append((float(loss), count))
        return (loss if count else torch.zeros_like(loss)), None, None


@contextmanager
def quantized_is_trainable(model: Any, trains_projector: bool) -> Iterator[None]:
    """Lets transformers' Trainer take a quantised model whose projector, which is not quantised, is trained.

    It asks for adapters, and takes a model for one that has them by this mark.
    """
    marked = trains_projector and getattr(model, "is_quantized", False)
    if marked:
        model._hf_peft_config_loaded = True
    try:
        yield
    finally:
        if marked:
            model._hf_peft_config_loaded = False
