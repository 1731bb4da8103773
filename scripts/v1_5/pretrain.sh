#!/usr/bin/env bash
# Stage 1: trains the projector on 558 000 captions; writes mm_projector.bin. Flags and environment: ../launch.sh.
# LLaVA's batch is 8 GPUs x 32 = 256; with fewer GPUs raise --gradient_accumulation_steps.
source "$(dirname "${BASH_SOURCE[0]}")/../launch.sh"
train zero2 \
    --model_name_or_path "${MODEL:-lmsys/vicuna-13b-v1.5}" \
    --version plain \
    --data_path "${DATA_PATH:-./playground/data/LLaVA-Pretrain/blip_laion_cc_sbu_558k.json}" \
    --image_folder "${IMAGE_FOLDER:-./playground/data/LLaVA-Pretrain/images}" \
    --tune_mm_mlp_adapter True \
    --output_dir "${OUTPUT_DIR:-./checkpoints/llava-v1.5-13b-pretrain}" \
    --per_device_train_batch_size 32 \
    --save_steps 24000 \
    --learning_rate 1e-3
