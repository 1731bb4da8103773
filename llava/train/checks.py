"""Checks of training's arguments, before anything is loaded: ranges, contradictions, and what would not be saved."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, TypeGuard

from llava.image_geometry import is_anyres, read_pinpoints
from llava.model.config import FEATURE_SELECTIONS, MERGE_TYPES
from llava.train.flags import DataArguments, ModelArguments
from llava.train.training_arguments import TrainingArguments

ASPECT_RATIOS = ("square", "pad")
"""`image_aspect_ratio` of training, beside those of tiles."""

ATTENTIONS = ("sdpa", "eager", "flash_attention_2")
"""Attention of the language model that training is tested with."""

MEASURES = {"eval_data_path": "loss", "eval_questions": "exact_match"}
"""What each kind of evaluation measures, by its flag; `--metric_for_best_model` names one."""


def check_training_arguments(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    """Checks that arguments are in range and do not contradict each other.

    Raises:
        ValueError: an argument is out of range, or two contradict each other.
    """
    _check_choices(model, data, training)
    _check_numbers(data, training)
    check_precision(training)
    if data.data_path is None:
        raise ValueError("--data_path is missing: a JSON list, JSON lines, or a folder of such files")
    check_modes(model, training)
    _check_batches(training)
    _check_evaluation(data, training)


def _check_choices(model: ModelArguments, data: DataArguments, training: TrainingArguments) -> None:
    for name, value, allowed in (
        ("bits", training.bits, (4, 8, 16)),
        ("quant_type", training.quant_type, ("nf4", "fp4")),
        ("attn_implementation", training.attn_implementation, (None, *ATTENTIONS)),
        ("lora_bias", training.lora_bias, ("none", "all", "lora_only")),
        ("mm_patch_merge_type", model.mm_patch_merge_type, MERGE_TYPES),
        ("mm_vision_select_feature", model.mm_vision_select_feature, FEATURE_SELECTIONS),
        ("label_smoothing_factor", training.label_smoothing_factor, (0,)),
        ("neftune_noise_alpha", training.neftune_noise_alpha, (None,)),
        ("remove_unused_columns", training.remove_unused_columns, (False,)),  # it would take images out of samples
    ):
        if value not in allowed:
            # None is a flag that is not given: as a word on the command line it would be a string.
            words = ", ".join(str(one) for one in allowed if one is not None)
            raise ValueError(f"--{name} is {value!r}; " + (f"allowed are {words}" if words else "leave the flag out"))
    if not is_supported_aspect_ratio(data.image_aspect_ratio):
        ratios = ", ".join((*ASPECT_RATIOS, "anyres", "anyres_max_N"))
        raise ValueError(f"--image_aspect_ratio is {data.image_aspect_ratio!r}; allowed are {ratios}")
    if data.image_grid_pinpoints is not None:
        read_pinpoints(data.image_grid_pinpoints)


def _check_numbers(data: DataArguments, training: TrainingArguments) -> None:
    for name, count, least in (
        ("model_max_length", training.model_max_length, 2),
        ("lora_r", training.lora_r, 1),
        ("lora_alpha", training.lora_alpha, 1),
        ("batch_tokens", training.batch_tokens, 1),
        ("max_bad_samples", data.max_bad_samples, 0),
        ("per_device_train_batch_size", training.per_device_train_batch_size, 1),
        ("per_device_eval_batch_size", training.per_device_eval_batch_size, 1),
        ("gradient_accumulation_steps", training.gradient_accumulation_steps, 1),
        ("dataloader_num_workers", training.dataloader_num_workers, 0),
        ("learning_rate", training.learning_rate, 0),
        ("mm_projector_lr", training.mm_projector_lr, 0),
        ("weight_decay", training.weight_decay, 0),
    ):
        if count is not None and not least <= count < math.inf:  # NaN is neither
            finite = "" if math.isfinite(count) else " and finite"
            raise ValueError(f"--{name} is {count}; it must be at least {least}{finite}")
    if not 0 <= training.lora_dropout < 1:
        raise ValueError(f"--lora_dropout is {training.lora_dropout:g}; it must be at least 0 and below 1")
    if training.max_steps != -1 and training.max_steps < 1:
        raise ValueError(f"--max_steps is {training.max_steps}; allowed are at least 1, and -1 for --num_train_epochs")
    if training.max_steps == -1 and not 0 < training.num_train_epochs < math.inf:
        raise ValueError(f"--num_train_epochs is {training.num_train_epochs:g}; it must be above 0 and finite")
    if training.save_strategy == "steps" and training.save_steps <= 0:
        raise ValueError(f"--save_steps is {training.save_steps:g}; it must be above 0, or --save_strategy no")


def _check_evaluation(data: DataArguments, training: TrainingArguments) -> None:
    evaluates = training.eval_strategy != "no" or training.eval_on_start
    wanted = [name for name in ("eval_data_path", "eval_questions") if getattr(data, name) is not None]
    if evaluates and not wanted:
        raise ValueError("--eval_strategy asks for evaluations; give --eval_data_path, --eval_questions or both")
    if wanted and not evaluates:
        raise ValueError(f"--{wanted[0]} is given, but --eval_strategy is no; allowed are steps and epoch")
    metric = training.metric_for_best_model  # by default loss, where transformers needs one
    if training.save_strategy == "best" and metric is None:
        raise ValueError("--save_strategy is best; name by what with --metric_for_best_model")
    if metric is not None and training.eval_strategy == "no":
        raise ValueError(f"the best checkpoint is that of the best {metric}; give --eval_strategy steps or epoch")
    measured = [MEASURES[name] for name in wanted]
    if metric is not None and metric.removeprefix("eval_") not in measured:
        # transformers looks it up after the first evaluation, before it saves.
        raise ValueError(
            f"the best checkpoint is that of the best {metric} (--metric_for_best_model), but what is evaluated gives"
            f" {' and '.join(measured)}: --eval_data_path measures loss, --eval_questions exact_match"
        )


def is_supported_aspect_ratio(aspect_ratio: str | None) -> TypeGuard[str]:
    """Whether training prepares images in this way."""
    return aspect_ratio in ASPECT_RATIOS or is_anyres(aspect_ratio)


def check_precision(training: TrainingArguments) -> None:
    """Raises ValueError for float16 on a CPU, where accelerate has no mixed precision for it."""
    if training.fp16 and training.device.type == "cpu":
        raise ValueError("--fp16 needs a GPU; on a CPU use --bf16 True, or neither")


def check_modes(model: ModelArguments, training: TrainingArguments) -> None:
    """Checks which parts are trained.

    Raises:
        ValueError: the flags contradict each other, or what is trained would not be saved.
    """
    projector, lora, unfrozen = model.tune_mm_mlp_adapter, training.lora_enable, model.unfreeze_mm_vision_tower
    contradictions: tuple[tuple[bool, str], ...] = (
        (projector and lora, "--tune_mm_mlp_adapter trains the projector alone, --lora_enable the language model, too"),
        (projector and unfrozen, "--tune_mm_mlp_adapter saves the projector alone, not the tower that "
         "--unfreeze_mm_vision_tower trains"),
        (projector and training.freeze_mm_mlp_adapter, "--tune_mm_mlp_adapter trains what --freeze_mm_mlp_adapter "
         "freezes"),
        (training.mm_projector_lr is not None and training.freeze_mm_mlp_adapter, "--mm_projector_lr is the learning "
         "rate of what --freeze_mm_mlp_adapter freezes"),
        (training.bits != 16 and not (lora or projector), f"--bits {training.bits} freezes the language model; add "
         "--lora_enable True or --tune_mm_mlp_adapter True"),
        (training.bits != 16 and training.deepspeed is not None and _zero_stage(training) == 3,
         "quantised weights cannot be sharded by ZeRO-3; use scripts/zero2.json"),
    )  # fmt: skip
    _refuse(contradictions)


def _check_batches(training: TrainingArguments) -> None:
    """Raises ValueError for flags on the order of samples, on batches or on workers that cannot hold together."""
    by_tokens, by_modality = training.batches_by_tokens, training.group_by_modality_length
    strategy, no_workers = training.train_sampling_strategy, training.dataloader_num_workers == 0
    context = training.dataloader_multiprocessing_context
    _refuse((
        (by_modality and by_tokens, "--group_by_modality_length groups a number of samples; --pack and --batch_tokens "
         "form batches by tokens"),
        (strategy == "group_by_length" and by_tokens, "--group_by_length groups a number of samples; --pack and "
         "--batch_tokens form batches by tokens"),
        (strategy == "sequential" and (by_tokens or by_modality), "--train_sampling_strategy sequential keeps the "
         "order of the data, and --pack, --batch_tokens and --group_by_modality_length have orders of their own; leave "
         "one out"),
        (training.auto_find_batch_size and by_tokens, "--auto_find_batch_size lowers a number of samples; --pack and "
         "--batch_tokens form batches by tokens, of which --batch_tokens N is the most"),
        (training.dataloader_persistent_workers and no_workers, "--dataloader_persistent_workers keeps workers between "
         "epochs, but --dataloader_num_workers is 0; raise it, or leave the flag out"),
        (context is not None and no_workers, "--dataloader_multiprocessing_context is how workers are started, but "
         "--dataloader_num_workers is 0; raise it, or leave the flag out"),
    ))  # fmt: skip


def _refuse(contradictions: Sequence[tuple[bool, str]]) -> None:
    for wrong, message in contradictions:
        if wrong:
            raise ValueError(message)


def _zero_stage(training: TrainingArguments) -> int:
    config: Any = training.hf_deepspeed_config.config
    return int(config.get("zero_optimization", {}).get("stage", 0))
