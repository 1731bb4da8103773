"""The flags of training: LLaVA's with its defaults, old spellings, the quadtree's settings, and wrong ones."""

from __future__ import annotations

from dataclasses import fields

import pytest
import transformers
from transformers.hf_argparser import string_to_bool

from llava.train.flags import (
    DataArguments,
    LlavaTrainingFields,
    ModelArguments,
    format_help,
    modernise,
    transformers_flags,
)

LLAVAS = {  # its dataclasses' fields and defaults
    ModelArguments: {
        "model_name_or_path": "facebook/opt-125m",
        "version": "v0",
        "freeze_backbone": False,
        "tune_mm_mlp_adapter": False,
        "vision_tower": None,
        "mm_vision_select_layer": -1,
        "pretrain_mm_mlp_adapter": None,
        "mm_projector_type": "linear",
        "mm_use_im_start_end": False,
        "mm_use_im_patch_token": True,
        "mm_patch_merge_type": "flat",
        "mm_vision_select_feature": "patch",
    },
    DataArguments: {
        "data_path": None,
        "lazy_preprocess": False,
        "is_multimodal": False,
        "image_folder": None,
        "image_aspect_ratio": "square",
    },
    LlavaTrainingFields: {
        "cache_dir": None,
        "freeze_mm_mlp_adapter": False,
        "mpt_attn_impl": "triton",
        "model_max_length": 512,
        "double_quant": True,
        "quant_type": "nf4",
        "bits": 16,
        "lora_enable": False,
        "lora_r": 64,
        "lora_alpha": 16,
        "lora_dropout": 0.05,
        "lora_weight_path": "",
        "lora_bias": "none",
        "mm_projector_lr": None,
        "group_by_modality_length": False,
    },
}


@pytest.mark.parametrize(("group", "defaults"), LLAVAS.items(), ids=lambda item: getattr(item, "__name__", ""))
def test_llavas_flags_have_its_defaults(group, defaults):
    own = {item.name: item.default for item in fields(group)}
    assert {name: own[name] for name in defaults} == defaults


def test_transformers_flags_are_read_without_importing_it():
    assert transformers_flags() == {item.name for item in fields(transformers.TrainingArguments) if item.init}


@pytest.mark.parametrize(
    ("old", "today"),
    [
        ("--evaluation_strategy no", "--eval_strategy no"),
        ("--warmup_ratio 0.03", "--warmup_steps 0.03"),
        ("--warmup_ratio 0.03 --warmup_steps 5", "--warmup_steps 5"),
        ("--warmup_steps 5 --warmup_ratio 0.03", "--warmup_steps 5"),
        ("--warmup_ratio 0.03 --warmup_steps 0", "--warmup_steps 0.03"),
        ("--warmup_steps=0 --warmup-ratio=0.03", "--warmup_steps 0.03"),
        ("--per_gpu_train_batch_size 4", "--per_device_train_batch_size 4"),
        ("--no_cuda True", "--use_cpu True"),
        ("--group_by_length True", "--train_sampling_strategy group_by_length"),
        ("--group_by_length False", ""),
        ("--adafactor", "--optim adafactor"),
        ("--adafactor no", ""),
        ("--adafactor Y", "--optim adafactor"),
        ("--group_by_length True --group_by_length False", ""),
        ("--optim adamw_hf", "--optim adamw_torch"),
        ("--model-max-length 2048", "--model_max_length 2048"),
        ("--weight_decay=0.", "--weight_decay 0."),
        ("--max_grad_norm -1", "--max_grad_norm -1"),
        ("--qlip", "--qlip True"),
        ("--no_double_quant", "--no_double_quant"),
    ],
)
def test_old_spellings(old, today):
    arguments, settings, warnings = modernise(old.split())
    assert arguments == today.split() and settings == {} and warnings == []


def test_a_switch_takes_transformers_words_alone():
    with pytest.raises(ValueError, match="--group_by_length is maybe; allowed are yes, true, .*, no, false"):
        modernise(["--group_by_length", "maybe"])
    for word in ("yes", "true", "t", "y", "1", "no", "false", "f", "n", "0"):
        is_on = string_to_bool(word)
        assert bool(modernise(["--adafactor", word])[0]) is is_on


def test_a_dropped_flag_is_accepted_with_a_warning():
    assert modernise(["--overwrite_output_dir", "True", "--lr_scheduler_type", "cosine"]) == (
        ["--lr_scheduler_type", "cosine"],
        {},
        [
            "--overwrite_output_dir is not read: a run continues from the last checkpoint in --output_dir; name a new"
            " folder to start over"
        ],
    )


EARLY = (  # the fields of transformers 4.37's TrainingArguments that today's lacks
    "adafactor dispatch_batches evaluation_strategy fp16_backend fp16_opt_level fsdp_min_num_params"
    " fsdp_transformer_layer_cls_to_wrap group_by_length half_precision_backend include_inputs_for_metrics"
    " include_tokens_per_second jit_mode_eval logging_dir mp_parameters no_cuda overwrite_output_dir past_index"
    " per_gpu_eval_batch_size per_gpu_train_batch_size push_to_hub_model_id push_to_hub_organization push_to_hub_token"
    " ray_scope save_safetensors split_batches torchdynamo tpu_metrics_debug tpu_num_cores use_ipex"
    " use_legacy_prediction_loop use_mps_device warmup_ratio"
)


def test_every_flag_of_transformers_in_llavas_time_is_accepted():
    """LLaVA pins 4.37. A flag that is gone says so; one that has another name or place is translated."""
    for name in EARLY.split():
        arguments, _, warnings = modernise([f"--{name}", "0"])
        assert bool(arguments or warnings) or name in ("adafactor", "group_by_length"), name
        assert all(warning.startswith(f"--{name} is not read: ") for warning in warnings)


def test_a_path_of_adapters_that_is_not_read_is_named():
    assert modernise(["--lora_weight_path", ""])[2] == []
    arguments, _, (warning,) = modernise(["--lora_weight_path", "runs/lora"])
    assert arguments == ["--lora_weight_path", "runs/lora"]
    assert warning.startswith("--lora_weight_path is not read: ") and "scripts/merge_lora_weights.py" in warning


def test_settings_of_the_quadtree():
    arguments, settings, _ = modernise(
        ["--qlip.alpha", "0.5", "--qlip.max_tokens", "None", "--qlip.criterion", "gradient", "--qlip.thumbnail", "True"]
    )
    assert arguments == []
    assert settings == {"alpha": 0.5, "max_tokens": None, "criterion": "gradient", "thumbnail": True}


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ("--output_dr x", "unknown flag --output_dr; did you mean --output_dir?; --help lists all"),
        ("--zzz 1", "unknown flag --zzz; --help lists all"),
        ("data.json --output_dir x", "'data.json' belongs to no flag"),
        ("--warmup_ratio 1", "--warmup_ratio is 1; it must be a number of at least 0 and below 1"),
        ("--warmup_ratio half", "--warmup_ratio is half; it must be a number of at least 0 and below 1"),
        ("--qlip.alpha -1", "alpha is -1; it must be >= 0"),
        ("--qlip.beta 1", "unknown QLIP setting beta; allowed are alpha"),
        ("--qlip.alpha 1 2", "--qlip.alpha takes one value, got 2"),
        ("--qlip.alpha", "--qlip.alpha takes one value, got 0"),
    ],
)
def test_wrong_flags(wrong, message):
    with pytest.raises((ValueError, TypeError)) as error:
        modernise(wrong.split())
    assert message in str(error.value)


def test_the_help_lists_every_flag():
    text = format_help("llava-train")
    for name in [*transformers_flags(), *(item.name for group in LLAVAS for item in fields(group)), "qlip.alpha"]:
        assert f"--{name}" in text, name
