#!/usr/bin/env bash
# Trains adapters of a finished LLaVA, on DATA_PATH and IMAGE_FOLDER. Flags and environment: ../launch.sh.
# LLaVA's batch is 8 GPUs x 16 = 128; with fewer GPUs raise --gradient_accumulation_steps.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
train zero3 "${INSTRUCTIONS[@]}" \
    --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 \
    --model_name_or_path "${MODEL:-liuhaotian/llava-v1.5-13b}" \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-task-lora}" \
    --learning_rate 2e-4
