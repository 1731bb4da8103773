"""A command line becomes LLaVA's three groups of arguments; contradictions are refused."""

from __future__ import annotations

from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from llava.train.arguments import TrainingArguments, check_deepspeed, parse_arguments, use_one_gpu

ROOT = Path(__file__).parents[3]

NEEDED = "--output_dir out --data_path data.json --use_cpu True"


def parse(flags: str = ""):
    return parse_arguments(f"{NEEDED} {flags}".split())


def test_defaults_are_llavas():
    args = parse()
    assert args.training.optim == "adamw_torch" and args.training.remove_unused_columns is False
    assert args.model.qlip is None and args.training.pack is False and args.training.batch_tokens is None
    assert args.given == {"output_dir", "data_path", "use_cpu"}


def test_a_recipes_flags():
    args = parse(
        "--bf16 True --evaluation_strategy no --warmup_ratio 0.03 --lr_scheduler_type cosine --lora_enable True"
        " --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 --group_by_modality_length True --report_to none"
    )
    training = args.training
    assert (training.lora_r, training.lora_alpha, training.mm_projector_lr) == (128, 256, 2e-5)
    assert training.get_warmup_steps(1000) == 30
    assert training.compute_dtype == torch.bfloat16
    assert {"eval_strategy", "warmup_steps"} <= args.given


@pytest.mark.parametrize(
    ("flags", "chosen"),
    [("", None), ("--qlip", True), ("--qlip False", False), ("--qlip.alpha 0.5", {"alpha": 0.5})],
)
def test_the_quadtree_is_chosen_by_flag(flags, chosen):
    assert parse(flags).model.qlip == chosen


def test_tf32_without_a_gpu_is_a_warning(monkeypatch, caplog):
    monkeypatch.setattr(torch.accelerator, "is_available", lambda: False)
    assert parse("--tf32 True").training.tf32 is None
    assert "--tf32 is not read: this machine has no GPU" in caplog.text


def test_arguments_can_be_made_without_a_command_line(tmp_path):
    args = TrainingArguments(output_dir=str(tmp_path), lora_enable=True, use_cpu=True, report_to="none")
    assert args.lora_r == 64 and args.compute_dtype == torch.float32


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--bits 5", "--bits is 5; allowed are 4, 8, 16"),
        (
            "--attn_implementation fast",
            "--attn_implementation is 'fast'; allowed are sdpa, eager, flash_attention_2",
        ),
        (
            "--attn_implementation None",  # a word, as any other
            "--attn_implementation is 'None'; allowed are sdpa, eager, flash_attention_2",
        ),
        ("--neftune_noise_alpha 5", "--neftune_noise_alpha is 5.0; leave the flag out"),
        ("--lora_bias some", "--lora_bias is 'some'; allowed are none, all, lora_only"),
        (
            "--image_aspect_ratio highres",
            "--image_aspect_ratio is 'highres'; allowed are square, pad, anyres, anyres_max",
        ),
        ("--mm_patch_merge_type unpad", "--mm_patch_merge_type is 'unpad'; allowed are flat, spatial, spatial_unpad"),
        ("--image_grid_pinpoints [[1]]", "image_grid_pinpoints holds [1]; allowed are"),
        ("--model_max_length 1", "--model_max_length is 1; it must be at least 2"),
        ("--batch_tokens 0", "--batch_tokens is 0; it must be at least 1"),
        ("--num_train_epochs 0", "--num_train_epochs is 0; it must be above 0"),
        ("--max_steps 0", "--max_steps is 0; allowed are at least 1, and -1 for --num_train_epochs"),
        ("--gradient_accumulation_steps 0", "--gradient_accumulation_steps is 0; it must be at least 1"),
        ("--mm_projector_lr -1", "--mm_projector_lr is -1.0; it must be at least 0"),
        ("--mm_projector_lr nan", "--mm_projector_lr is nan; it must be at least 0"),
        ("--learning_rate inf", "--learning_rate is inf; it must be at least 0"),
        ("--num_train_epochs nan", "--num_train_epochs is nan; it must be above 0"),
        ("--save_strategy steps --save_steps 0", "--save_steps is 0; it must be above 0, or --save_strategy no"),
        ("--lora_alpha 0", "--lora_alpha is 0; it must be at least 1"),
        ("--lora_dropout 1", "--lora_dropout is 1; it must be at least 0 and below 1"),
        ("--fp16 True", "--fp16 needs a GPU"),
        ("--warmup_ratio some", "--warmup_ratio is some; it must be a number of at least 0 and below 1"),
        ("--label_smoothing_factor 0.1", "--label_smoothing_factor is 0.1; allowed are 0"),
        ("--mm_vision_select_feature all", "--mm_vision_select_feature is 'all'; allowed are patch, cls_patch"),
        ("--max_bad_samples -1", "--max_bad_samples is -1; it must be at least 0"),
        ("--bits 4", "--bits 4 freezes the language model; add --lora_enable True or --tune_mm_mlp_adapter True"),
        ("--tune_mm_mlp_adapter True --lora_enable True", "--tune_mm_mlp_adapter trains the projector alone"),
        ("--tune_mm_mlp_adapter True --unfreeze_mm_vision_tower True", "saves the projector alone"),
        ("--tune_mm_mlp_adapter True --freeze_mm_mlp_adapter True", "--freeze_mm_mlp_adapter freezes"),
        ("--group_by_modality_length True --pack True", "--pack and --batch_tokens form batches by tokens"),
        ("--group_by_length True --batch_tokens 9", "--pack and --batch_tokens form batches by tokens"),
        ("--remove_unused_columns True", "--remove_unused_columns is True; allowed are False"),
        ("--train_sampling_strategy sequential --pack True", "sequential keeps the order of the data, and --pack"),
        ("--train_sampling_strategy sequential --batch_tokens 9", "sequential keeps the order of the data"),
        ("--train_sampling_strategy sequential --group_by_modality_length True", "sequential keeps the order of the"),
        ("--auto_find_batch_size True --batch_tokens 9", "--auto_find_batch_size lowers a number of samples; --pack"),
        ("--auto_find_batch_size True --pack True", "--auto_find_batch_size lowers a number of samples; --pack"),
        ("--dataloader_persistent_workers True", "but --dataloader_num_workers is 0; raise it, or leave the flag out"),
        ("--dataloader_multiprocessing_context spawn", "but --dataloader_num_workers is 0; raise it"),
        ("--qlip False --qlip.alpha 1", "--qlip False contradicts --qlip.alpha"),
        ("--eval_strategy steps", "give --eval_data_path, --eval_questions or both"),
        ("--eval_questions q.jsonl", "--eval_questions is given, but --eval_strategy is no"),
        ("--save_strategy no --load_best_model_at_end True", "is that of the best loss; give --eval_strategy steps or"),
        ("--metric_for_best_model accuracy", "the best checkpoint is that of the best accuracy; give --eval_strategy"),
        ("--save_strategy best", "--save_strategy is best; name by what with --metric_for_best_model"),
        (
            "--eval_strategy epoch --eval_data_path e.json --metric_for_best_model exact_match",
            "best exact_match (--metric_for_best_model), but what is evaluated gives loss: --eval_data_path",
        ),
        (
            "--eval_strategy epoch --save_strategy epoch --eval_questions q.jsonl --load_best_model_at_end True",
            "best loss (--metric_for_best_model), but what is evaluated gives exact_match:",
        ),
        (
            "--eval_strategy epoch --eval_data_path e.json --eval_questions q.jsonl --metric_for_best_model bleu",
            "best bleu (--metric_for_best_model), but what is evaluated gives loss and exact_match",
        ),
    ],
)
def test_contradictions_are_refused(flags, message):
    with pytest.raises(ValueError) as error:
        parse(flags)
    assert message in str(error.value)


@pytest.mark.parametrize(
    ("flags", "metric"),
    [
        ("--eval_data_path e.json", "loss"),
        ("--eval_data_path e.json --metric_for_best_model eval_loss", "eval_loss"),
        ("--eval_questions q.jsonl --metric_for_best_model exact_match", "exact_match"),
    ],
)
def test_the_best_checkpoint_is_chosen_by_what_is_measured(flags, metric):
    best = "--eval_strategy epoch --save_strategy epoch --load_best_model_at_end True"
    assert parse(f"{best} {flags}").training.metric_for_best_model == metric


@pytest.mark.parametrize("missing", ["output_dir", "data_path"])
def test_what_is_missing_is_named(missing):
    other = {"output_dir": "--data_path d", "data_path": "--output_dir o"}[missing]
    with pytest.raises(ValueError, match=f"--{missing} is missing"):
        parse_arguments(other.split())


def test_a_value_of_the_wrong_type_is_one_line(capsys):
    with pytest.raises(SystemExit) as stopped:
        parse("--learning_rate fast")
    assert stopped.value.code == 2
    assert "invalid float value: 'fast'" in capsys.readouterr().err.splitlines()[-1]


def test_an_absent_deepspeed_is_named_with_its_extra(monkeypatch):
    monkeypatch.setattr("llava.train.arguments.find_spec", {}.get)
    with pytest.raises(ImportError, match=r'--deepspeed needs .*: pip install "\.\[deepspeed\]"'):
        parse("--deepspeed scripts/zero2.json")


@pytest.mark.parametrize(("visible", "warned"), [(0, False), (1, False), (4, True)])
def test_a_process_without_a_launcher_trains_on_one_gpu(visible, warned, caplog):
    training = parse().training
    training._n_gpu = visible  # as transformers counts them
    use_one_gpu(training)
    assert training.n_gpu == min(visible, 1) and training.train_batch_size == training.per_device_train_batch_size
    assert ("torchrun --nproc-per-node 4" in caplog.text) is warned


@pytest.mark.parametrize("name", ["zero2", "zero3", "zero3_offload"])
def test_deepspeeds_own_optimizer_has_one_learning_rate_and_its_scheduler_is_the_files(name, caplog):
    file = str(ROOT / "scripts" / f"{name}.json")
    check_deepspeed(file, None, frozenset({"lr_scheduler_type"}))
    own = name == "zero3_offload"
    assert (f"--lr_scheduler_type is not used: {file}" in caplog.text) is own
    with pytest.raises(ValueError, match="has its own 'optimizer'") if own else nullcontext():
        check_deepspeed(file, 2e-5, frozenset())


def test_deepspeeds_settings_may_be_json_itself():
    check_deepspeed('{"zero_optimization": {"stage": 2}}', 2e-5, frozenset())
    with pytest.raises(ValueError, match="has its own 'optimizer'"):
        check_deepspeed('{"optimizer": {"type": "AdamW"}}', 2e-5, frozenset())
