"""Flags of LLaVA's time: what transformers calls them today, and what to do without those that are gone or not read."""

from __future__ import annotations

RENAMED = {
    "evaluation_strategy": "eval_strategy",
    "warmup_ratio": "warmup_steps",
    "no_cuda": "use_cpu",
    "per_gpu_train_batch_size": "per_device_train_batch_size",
    "per_gpu_eval_batch_size": "per_device_eval_batch_size",
    "gradient_checkpointing": "activation_checkpointing",
    "gradient_checkpointing_kwargs": "activation_checkpointing_kwargs",
}
"""Flags that LLaVA's scripts and older transformers spell otherwise -> today's, where transformers has that name.

`warmup_ratio` is a share of all steps, which `warmup_steps` takes below 1.
"""

SWITCHES = {
    "group_by_length": ["--train_sampling_strategy", "group_by_length"],
    "adafactor": ["--optim", "adafactor"],
}
"""Old switches -> what they mean today."""

TRUE, FALSE = ("yes", "true", "t", "y", "1"), ("no", "false", "f", "n", "0")
"""Words for a switch that is on, or off; in any case of letters."""

DROPPED = {
    "logging_dir": "set the environment variable TENSORBOARD_LOGGING_DIR",
    "overwrite_output_dir": "a run continues from the last checkpoint in --output_dir; name a new folder to start over",
    "save_safetensors": "weights are always saved as safetensors",
    "include_tokens_per_second": "tokens per second are always logged",
    "include_inputs_for_metrics": "use --include_for_metrics inputs",
    "dispatch_batches": "use --accelerator_config",
    "split_batches": "use --accelerator_config",
    "half_precision_backend": "mixed precision is PyTorch's",
    "fp16_backend": "mixed precision is PyTorch's",
    "fp16_opt_level": "mixed precision is PyTorch's",
    "use_mps_device": "an accelerator that is there is used",
    "use_ipex": "it has no successor",
    "jit_mode_eval": "it has no successor",
    "ray_scope": "it has no successor",
    "past_index": "it has no successor",
    "fsdp_transformer_layer_cls_to_wrap": 'name the layer in --fsdp_config, {"transformer_layer_cls_to_wrap": [...]}',
    "fsdp_min_num_params": 'give it in --fsdp_config, {"min_num_params": N}',
    "sharded_ddp": "use --fsdp, or --deepspeed scripts/zero2.json",
    "push_to_hub_model_id": "use --hub_model_id",
    "push_to_hub_organization": "use --hub_model_id ORGANIZATION/NAME",
    "push_to_hub_token": "use --hub_token",
    "mp_parameters": "SageMaker's model parallelism is not supported; use --fsdp or --deepspeed",
    "tpu_num_cores": "a TPU's launcher decides on the number of cores",
    "tpu_metrics_debug": "use --debug tpu_metrics_debug",
    "torchdynamo": "use --torch_compile_backend",
    "xpu_backend": "use --ddp_backend",
    "use_legacy_prediction_loop": "evaluations have one loop",
}
"""Flags that transformers no longer has -> what to do instead; accepted with a warning."""

UNREAD = {
    "lora_weight_path": "adapters start from new weights; merge trained ones into the base by"
    " scripts/merge_lora_weights.py and start from that, or continue their run with --resume_from_checkpoint"
}
"""LLaVA's flags that promise what neither it nor this package does -> what to do; a warning where one has a value."""
