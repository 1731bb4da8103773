#!/usr/bin/env bash
# Stage 2 with QLoRA: finetune_lora.sh over weights of 4 bits. Flags and environment: launch.sh.
# LLaVA's script of this name has the settings of its first version; these are those of v1.5. Weights of 4 bits cannot be
# sharded, so ZeRO is 2, as there.
source "$(dirname "${BASH_SOURCE[0]}")/launch.sh"
train zero2 "${INSTRUCTIONS[@]}" \
    --bits 4 \
    --lora_enable True --lora_r 128 --lora_alpha 256 --mm_projector_lr 2e-5 \
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
    --pretrain_mm_mlp_adapter "$PROJECTOR" \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-qlora}" \
    --learning_rate 2e-4
