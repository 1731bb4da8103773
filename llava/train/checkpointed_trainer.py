"""transformers' Trainer with LLaVA's files: what it saves, and what it continues from."""

from __future__ import annotations

import json
import logging
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import Trainer, TrainerCallback

from llava.model.loading.folder import NON_LORA_FILE, PROJECTOR_FILE
from llava.train.saving import (
    STAGING,
    TOTALS_FILE,
    adapter_state,
    cache_in_config,
    check_loaded,
    finish_checkpoint,
    load_trained,
    projector_state,
    read_totals,
    refuse_diverged,
    save_adapters,
    save_config,
    save_projector,
)
from llava.train.throughput import Throughput
from llava.train.training_arguments import choose_compute_dtype

logger = logging.getLogger(__name__)


BAD_SAMPLES_STEPS = 10
"""Steps after which several processes add up their bad samples at the latest."""


class StopAtBadSamples(TrainerCallback):
    """Ends a run in which more samples than allowed could not be used, with a checkpoint.

    One process stops after the step that met them. Several add their numbers up with each log line, before each
    checkpoint, every `BAD_SAMPLES_STEPS` steps and after the last, and all stop at the same step. One that raised an
    error at once would leave no checkpoint, for which it needs the others.
    """

    def __init__(self, trainer: CheckpointedTrainer) -> None:
        self.trainer = trainer

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks transformers to save and to stop; `_finalize_training` raises the error."""
        is_alone = self.trainer.args.world_size == 1
        is_last = state.global_step >= state.max_steps
        if is_alone or is_last or control.should_save or state.global_step % BAD_SAMPLES_STEPS == 0:
            throughput = self.trainer.throughput
            if throughput.left_out.exceeds(self._add_counts(throughput.left_out.waiting_bad)):
                throughput.update()  # two processes may have met the same sample
        self._stop_if_exceeded(control)

    def on_log(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Asks for the same after a log line, for which the processes have added up what they have left out."""
        self._stop_if_exceeded(control)

    def _stop_if_exceeded(self, control: Any) -> None:
        """Compares what all processes have counted together, so that they agree without asking each other."""
        if self.trainer.throughput.left_out.exceeds():
            control.should_save = control.should_training_stop = True

    def _add_counts(self, count: int) -> int:
        """Adds up a number of all processes."""
        if self.trainer.args.world_size == 1:
            return count
        own = torch.tensor(count, device=self.trainer.args.device)
        return int(self.trainer.accelerator.reduce(own, "sum"))


class CheckpointedTrainer(Trainer):
    """Saves the projector, adapters or the whole model, and in every checkpoint what continues the run."""

    control: Any
    throughput: Throughput
    plan: Any
    """What decides on the samples of each step."""
    settings: Mapping[str, Any] = {}
    """What else a run that continues this one must share; see `llava.train.settings`."""
    _staging: Path | None = None

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
        dtype = choose_compute_dtype(self.args)
        with cache_in_config(model.config), self._writing_whole_tensors(is_checkpoint):
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

    @contextmanager
    def _writing_whole_tensors(self, is_checkpoint: bool) -> Iterator[None]:
        """Lets transformers write FSDP's model at the end where checkpoints are of shards; it would write none."""
        plugin = self.accelerator.state.fsdp_plugin if self.is_fsdp_enabled and not is_checkpoint else None
        if plugin is None:
            yield
            return
        kind = plugin.state_dict_type
        plugin.set_state_dict_type("FULL_STATE_DICT")
        try:
            yield
        finally:
            plugin.set_state_dict_type(kind)

    def _save_checkpoint(self, model: nn.Module, trial: Any) -> None:
        """Writes a checkpoint under a temporary name and renames it once complete.

        Raises:
            ValueError: a trained weight is not finite; the checkpoints before stay.
        """
        if not self.throughput.has_trained():
            return
        refuse_diverged(self)
        final = Path(super()._get_output_dir(trial))
        name, limit = f"checkpoint-{self.state.global_step}", self.args.save_total_limit
        with self._writing_to(final / STAGING), self.throughput.paused():
            super()._save_checkpoint(model, trial)
            staged = final / STAGING / name
            if self.args.should_save:
                totals = self.throughput.state() | {"plan": self.plan, "settings": dict(self.settings)}
                (staged / TOTALS_FILE).write_text(json.dumps(totals), encoding="utf-8")
            self._name_best(staged, final)
        self.accelerator.wait_for_everyone()
        # A machine that does not see what process 0 has written keeps the parts of its own processes (ZeRO's shards).
        is_apart = self.args.local_process_index == 0 and not (staged / TOTALS_FILE).is_file()
        self.accelerator.wait_for_everyone()
        if self.args.should_save or (is_apart and staged.is_dir()):
            finish_checkpoint(staged, final / name, limit, self.state.best_model_checkpoint)
        self.accelerator.wait_for_everyone()

    @contextmanager
    def _writing_to(self, folder: Path) -> Iterator[None]:
        """Lets transformers write into an empty folder, and delete no older checkpoint; every process must open it."""
        limit = self.args.save_total_limit
        self._staging, self.args.save_total_limit = folder, None
        try:
            if self.args.local_process_index == 0:
                shutil.rmtree(folder, ignore_errors=True)
            self.accelerator.wait_for_everyone()
            yield
        finally:
            self._staging, self.args.save_total_limit = None, limit

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
        self._load_weights(Path(resume_from_checkpoint), self.model if model is None else model)

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Continues the totals, too; DeepSpeed, which reads the weights itself, comes here as well.

        Raises:
            ValueError: more samples than allowed could not be used then, and cannot now.
        """
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is not None and (totals := read_totals(Path(checkpoint))):
            self.throughput.restore(totals)
            self.throughput.left_out.look_again(self.train_dataset)
            self.throughput.left_out.check_bad(Path(checkpoint))

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

    def _finalize_training(self, *args: Any, **kwargs: Any) -> Any:
        """Ends a run; its last checkpoint, which says that it is done, stays beside the best, unlike transformers'.

        Raises:
            ValueError: it ends early, since more samples than allowed cannot be used; see `StopAtBadSamples`.
        """
        saved = Path(str(self.args.output_dir)) / f"checkpoint-{self.state.global_step}"
        self.throughput.update()  # so that all processes end alike
        self.throughput.left_out.check_bad(saved if saved.is_dir() and not self.args.save_only_model else None)
        limit, self.args.save_total_limit = self.args.save_total_limit, None
        try:
            return super()._finalize_training(*args, **kwargs)
        finally:
            self.args.save_total_limit = limit

    def _run_epoch(self, *args: Any, **kwargs: Any) -> None:
        """Trains an epoch, unless the checkpoint that the run continues from has all its steps.

        transformers compares after a step, so a repeated command would train one step more.
        """
        if self.state.global_step >= self.state.max_steps:
            self.control.should_training_stop = True
            return
        super()._run_epoch(*args, **kwargs)
