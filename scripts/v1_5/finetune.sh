#!/usr/bin/env bash
# Stage 2: trains the language model and the projector on 665 000 instructions. Flags and environment: ../launch.sh.
# LLaVA's batch is 8 GPUs x 16 = 128; with fewer GPUs raise --gradient_accumulation_steps.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
train zero3 "${INSTRUCTIONS[@]}" \
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
    --pretrain_mm_mlp_adapter "$PROJECTOR" \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b}" \
    --learning_rate 2e-5
