"""transformers' Trainer for LLaVA: its batches, its learning rates, its files, and what it logs."""

from __future__ import annotations

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Sampler
from transformers import Trainer
from transformers.trainer_utils import EvalLoopOutput

from llava.constants import IGNORE_INDEX
from llava.model.loading.checkpoint import NON_LORA_FILE, PROJECTOR_FILE
from llava.train.data.loaders import make_loader, share_batches
from llava.train.data.token_batches import TokenBatchSampler
from llava.train.sampler import LengthGroupedSampler as LengthGroupedSampler  # LLaVA's path of this and the next two
from llava.train.sampler import choose_sampler
from llava.train.sampler import get_modality_length_grouped_indices as get_modality_length_grouped_indices
from llava.train.sampler import split_to_even_chunks as split_to_even_chunks
from llava.train.saving import (
    STAGING,
    TOTALS_FILE,
    adapter_state,
    cache_in_config,
    check_loaded,
    finish_checkpoint,
    load_trained,
    projector_state,
    save_adapters,
    save_config,
    save_projector,
)
from llava.train.throughput import BatchCounts, Throughput, gather_objects

logger = logging.getLogger(__name__)


class LLaVATrainer(Trainer):
    """Trains the projector, the whole model, or adapters, and saves in every checkpoint what continues the run."""

    control: Any

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
            args: `TrainingArguments`; `tune_mm_mlp_adapter`, if it has it, saves the projector alone.
            tokenizer: LLaVA's name for `processing_class`.
            lengths: int (N,), tokens of each sample, text and visual; needed for `batch_tokens` and `pack`.
            max_bad_samples: most malformed or unreadable samples to leave out before the run ends.
            **kwargs: of transformers' Trainer.
        """
        kwargs.setdefault("processing_class", tokenizer)
        super().__init__(model=model, args=args, **kwargs)
        self.lengths = lengths
        malformed = getattr(getattr(self.train_dataset, "samples", None), "malformed", ())
        unmeasured = 0 if lengths is None else int((lengths == 0).sum())
        unused = len(malformed) + unmeasured
        self.throughput = Throughput(max_bad_samples, malformed=malformed, unused=unused)
        self.evaluator: Any = None
        self._staging: Path | None = None
        self._evaluated: list[tuple[float, int]] = []
        self._eval_counts = BatchCounts()

    # Batches

    def _get_train_sampler(self, train_dataset: Dataset | None = None) -> Sampler | None:
        dataset: Any = self.train_dataset if train_dataset is None else train_dataset
        sampler = choose_sampler(dataset, self.args, self._seed)
        return super()._get_train_sampler(train_dataset) if sampler is None else sampler

    @property
    def _seed(self) -> int:
        return self.args.seed if self.args.data_seed is None else self.args.data_seed

    def get_train_dataloader(self) -> DataLoader:
        """Builds the loader of training batches: of a number of samples, or of a number of tokens."""
        args = self.args
        if args.batch_tokens is None and not args.pack:
            return super().get_train_dataloader()
        if self.train_dataset is None or self.lengths is None:
            raise ValueError("batch_tokens and pack need the training data set and the lengths of its samples")
        budget = args.batch_tokens or args.train_batch_size * args.model_max_length
        sampler = TokenBatchSampler(
            self.lengths,
            budget,
            args.model_max_length if args.pack else None,
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
        rate = self.args.mm_projector_lr
        optimizer = super().create_optimizer(model)
        if rate is None or any("is_projector" in group for group in optimizer.param_groups):
            return optimizer
        trained: Any = self.model if model is None else model
        projector = {id(weight) for name, weight in trained.named_parameters() if "mm_projector" in name}
        for group in list(optimizer.param_groups):
            own = [weight for weight in group["params"] if id(weight) in projector]
            if own:
                group["params"] = [weight for weight in group["params"] if id(weight) not in projector]
                rest = {name: value for name, value in group.items() if name != "params"}
                optimizer.add_param_group({**rest, "params": own, "lr": rate, "is_projector": True})
        return optimizer

    # Log and evaluation

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        """Adds throughput, padding and memory to the log lines of training steps."""
        super().log(logs | self.throughput.report() if "loss" in logs else logs, start_time)

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
            logger.warning("left out of the evaluation: %s", skipped.reason)
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

    # Files

    @property
    def _is_lora(self) -> bool:
        return hasattr(self.accelerator.unwrap_model(self.model), "peft_config")

    @property
    def _is_projector_only(self) -> bool:
        return bool(getattr(self.args, "tune_mm_mlp_adapter", False))

    def save_model(self, output_dir: str | None = None, _internal_call: bool = False) -> None:
        """Writes the projector and config.json, the adapters and other trained weights, or the whole model."""
        folder = Path(output_dir or self.args.output_dir)
        model: Any = self.accelerator.unwrap_model(self.model)
        if self._is_projector_only:
            state = projector_state(model)
            if self.args.should_save:
                save_projector(model, state, folder)
        elif self._is_lora:
            state = adapter_state(model)
            if self.args.should_save:
                save_adapters(model, state, folder)
        else:
            self._save_whole(model, folder, _internal_call)

    def _save_whole(self, model: Any, folder: Path, is_checkpoint: bool) -> None:
        """Writes a whole model: float32 weights in a checkpoint, at the end in the dtype that the model computed in."""
        dtype = self.args.compute_dtype
        with cache_in_config(model.config):
            if is_checkpoint or dtype == torch.float32 or self.is_deepspeed_enabled or self.is_fsdp_enabled:
                super().save_model(str(folder), is_checkpoint)
            elif self.args.should_save:
                tied = model.all_tied_weights_keys  # as copies they would be written a second time
                state = {
                    name: tensor.to("cpu", dtype) if tensor.is_floating_point() else tensor
                    for name, tensor in model.state_dict().items()
                    if name not in tied
                }
                self._save(str(folder), state_dict=state)
                save_config(model, folder, dtype)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint under another name and renames it: one that has its name is whole."""
        if not self.throughput.has_trained():
            return
        final = Path(super()._get_output_dir(trial))
        name, limit = f"checkpoint-{self.state.global_step}", self.args.save_total_limit
        self._staging, self.args.save_total_limit = final / STAGING, None
        try:
            if self.args.local_process_index == 0:
                shutil.rmtree(self._staging, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            with self.throughput.paused():
                super()._save_checkpoint(model, trial)
            staged = self._staging / name
            if self.args.should_save:
                (staged / TOTALS_FILE).write_text(json.dumps(self.throughput.state()), encoding="utf-8")
            self._name_best(staged, final)
        finally:
            self._staging, self.args.save_total_limit = None, limit
        self.accelerator.wait_for_everyone()
        # A machine that does not see what process 0 has written keeps the parts of its own processes (ZeRO's shards).
        is_apart = self.args.local_process_index == 0 and not (staged / TOTALS_FILE).is_file()
        self.accelerator.wait_for_everyone()
        if self.args.should_save or (is_apart and staged.is_dir()):
            finish_checkpoint(staged, final / name, limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    def _name_best(self, staged: Path, final: Path) -> None:
        """Corrects the best checkpoint's path in the state, which names it while it is written."""
        best = final / f"checkpoint-{self.state.best_global_step}"
        if self.state.best_global_step and (best.is_dir() or best.name == staged.name):
            self.state.best_model_checkpoint = str(best)
            if self.args.should_save:
                self.state.save_to_json(str(staged / "trainer_state.json"))

    def _get_output_dir(self, trial: Any) -> str:
        return super()._get_output_dir(trial) if self._staging is None else str(self._staging)

    def _load_from_checkpoint(self, resume_from_checkpoint: str, model: Any = None) -> None:
        """Reads what `save_model` wrote into a checkpoint."""
        folder = Path(resume_from_checkpoint)
        if (folder / TOTALS_FILE).is_file():
            self.throughput.restore(json.loads((folder / TOTALS_FILE).read_text(encoding="utf-8")))
        self._load_weights(folder, self.model if model is None else model)

    def _load_weights(self, folder: Path, model: Any) -> None:
        if not self._is_projector_only:
            super()._load_from_checkpoint(str(folder), model)
        if self._is_projector_only or self._is_lora:
            load_trained(model, folder / (PROJECTOR_FILE if self._is_projector_only else NON_LORA_FILE))

    def _issue_warnings_after_load(self, load_result: Any) -> None:
        check_loaded(self.accelerator.unwrap_model(self.model), load_result)

    def _load_best_model(self) -> None:
        best = Path(str(self.state.best_model_checkpoint))
        if not (self._is_projector_only or self._is_lora):
            super()._load_best_model()
        elif self.args.should_save or (best / "config.json").is_file():
            self._load_weights(best, self.model)  # the totals are the run's
        else:  # without a shared folder; process 0 writes the model
            logger.warning("%s is on another machine; the processes of this one keep the last weights", best)
