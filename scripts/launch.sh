# What the training recipes share; they source it.
#
#   bash scripts/v1_5/finetune.sh --qlip True --save_steps 500
#
# Flags follow the recipe's own on the command line of llava.train; of two equal flags the last counts. Environment:
#   MODEL, DATA_PATH, IMAGE_FOLDER, VISION_TOWER, PROJECTOR, OUTPUT_DIR   what a recipe reads and writes
#   REPORT_TO         where the log goes (default: wandb if it is installed, else tensorboard)
#   LAUNCHER          deepspeed (default if it is installed), torchrun (default if not), accelerate
#   LAUNCHER_FLAGS    flags of the launcher: "--nnodes 2 --node_rank 0 --master_addr ..."
#   NUM_PROCESSES     processes of torchrun on this machine (default: its GPUs, at least 1)
#   DEEPSPEED_CONFIG  replaces the recipe's ZeRO file; "none" trains without DeepSpeed
#   TRAIN             the module (default: llava.train.train_mem if flash_attn is installed, else llava.train.train)
#   PYTHON            the interpreter (default: python, of the environment that is active)
#   DRY_RUN=1         prints the command

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
source "$ROOT/scripts/python.sh"
FLAGS=("$@")

installed() {
    "$PYTHON" -c "import importlib.util, sys; sys.exit(importlib.util.find_spec('$1') is None)"
}

note() {
    echo "$(basename "$0"): $*" >&2
}

if [[ -z ${REPORT_TO:-} ]]; then
    REPORT_TO=wandb
    if ! installed wandb; then
        REPORT_TO=tensorboard
        note "wandb is not installed: the log goes to TensorBoard; REPORT_TO chooses"
    fi
fi

# LLaVA v1.5's settings in every recipe.
COMMON=(
    --vision_tower "${VISION_TOWER:-openai/clip-vit-large-patch14-336}"
    --mm_projector_type mlp2x_gelu
    --mm_vision_select_layer -2
    --mm_use_im_start_end False
    --mm_use_im_patch_token False
    --bf16 True
    --tf32 True
    --num_train_epochs 1
    --per_device_eval_batch_size 4
    --gradient_accumulation_steps 1
    --evaluation_strategy "no"
    --save_strategy "steps"
    --save_total_limit 1
    --weight_decay 0.
    --warmup_ratio 0.03
    --lr_scheduler_type "cosine"
    --logging_steps 1
    --model_max_length 2048
    --gradient_checkpointing True
    --dataloader_num_workers 4
    --lazy_preprocess True
    --report_to "$REPORT_TO"
)

# Its settings in every recipe but pretrain.sh.
INSTRUCTIONS=(
    --version v1
    --data_path "${DATA_PATH:-./playground/data/llava_v1_5_mix665k.json}"
    --image_folder "${IMAGE_FOLDER:-./playground/data}"
    --image_aspect_ratio pad
    --group_by_modality_length True
    --per_device_train_batch_size 16
    --save_steps 50000
)

# The projector that pretrain.sh trains.
PROJECTOR=${PROJECTOR:-./checkpoints/llava-v1.5-13b-pretrain/mm_projector.bin}

# launcher: sets LAUNCH, the command before the module's name.
launcher() {
    local flags
    read -ra flags <<< "${LAUNCHER_FLAGS:-}"
    case $LAUNCHER in
        deepspeed) LAUNCH=(deepspeed.launcher.runner ${flags[@]+"${flags[@]}"} --module) ;;
        torchrun)
            local count=${NUM_PROCESSES:-}
            [[ $count ]] || count=$("$PYTHON" -c "import torch; print(max(1, torch.cuda.device_count()))")
            LAUNCH=(torch.distributed.run --nproc-per-node "$count" ${flags[@]+"${flags[@]}"} -m)
            # One process needs no launcher, which would print a report of its own below an error; DeepSpeed and FSDP do.
            if [[ $count == 1 && -z ${flags[*]-} ]] && ! is_sharded; then LAUNCH=(); fi
            ;;
        accelerate) LAUNCH=(accelerate.commands.launch ${flags[@]+"${flags[@]}"} -m) ;;
        *)
            note "LAUNCHER is '$LAUNCHER'; allowed are deepspeed, torchrun and accelerate"
            exit 2
            ;;
    esac
    LAUNCH=("$PYTHON" -m ${LAUNCH[@]+"${LAUNCH[@]}"})
}

# is_sharded: whether DeepSpeed or FSDP, which need a launcher's variables, share the weights out.
is_sharded() {
    [[ ${zero[*]-} || " ${FLAGS[*]-} " == *" --deepspeed"* || " ${FLAGS[*]-} " == *" --fsdp"* ]]
}

# uses_quadtree: whether the run trains with the quadtree, by its flags or else by the checkpoint's folder.
uses_quadtree() {
    local flag last="" model=${MODEL:-}
    for flag in ${FLAGS[@]+"${FLAGS[@]}"}; do
        case $flag in
            --qlip=[Ff]alse | --no_qlip) return 1 ;;
            --model_name_or_path=*) model=${flag#*=} ;;
        esac
        if [[ $last == --qlip && $flag == [Ff]alse ]]; then return 1; fi
        if [[ $last == --model_name_or_path ]]; then model=$flag; fi
        last=$flag
    done
    [[ " ${FLAGS[*]-} " == *" --qlip"* ]] && return 0
    [[ -f $model/config.json ]] && grep -Eq '"qlip": *(true|\{)' "$model/config.json"
}

# train ZERO FLAG...: trains with a ZeRO file (zero2, zero3), LLaVA's settings, the recipe's flags, and the user's.
train() {
    local zero=() config=${DEEPSPEED_CONFIG:-$ROOT/scripts/$1.json}
    shift
    if [[ $config != none ]] && installed deepspeed; then
        zero=(--deepspeed "$config")
        LAUNCHER=${LAUNCHER:-deepspeed}
    elif [[ $config != none ]]; then
        note "deepspeed is not installed: every GPU holds all weights and optimizer states (pip install deepspeed)"
    fi
    LAUNCHER=${LAUNCHER:-torchrun}
    launcher
    if [[ -z ${TRAIN:-} ]]; then
        TRAIN=llava.train.train
        # The quadtree's attention bias needs a mask, which FlashAttention does not take.
        if ! uses_quadtree && installed flash_attn; then TRAIN=llava.train.train_mem; fi
    fi
    LAUNCH+=("$TRAIN" ${zero[@]+"${zero[@]}"} "${COMMON[@]}" "$@" ${FLAGS[@]+"${FLAGS[@]}"})
    if [[ ${DRY_RUN:-} ]]; then
        printf '%q ' "${LAUNCH[@]}"
        echo
    else
        exec "${LAUNCH[@]}"
    fi
}
