# What the benchmark scripts share; they source it.
#
#   bash scripts/v1_5/eval/pope.sh --model-path liuhaotian/llava-v1.5-7b --qlip --max-tokens 1152
#
# Every flag goes to the command that answers; without --model-path it is the embedded model. Environment:
#   CUDA_VISIBLE_DEVICES=0,1   one process for each GPU (default: one process)
#   EVAL_DIR                   the data (default: ./playground/data/eval, laid out as LLaVA documents)
#   CKPT                       the run's name (default: the model's, with the flags that change answers)
#   SCORE_FILE                 where the score goes (default: scores/NAME.json in the benchmark's folder)
#   PYTHON                     the interpreter (default: python, of the environment that is active)
# A run that was stopped continues when started again with as many GPUs. With --limit N each process answers its first N
# questions, which are merged into NAME.limit.jsonl, and nothing is scored.

set -euo pipefail

ROOT=$(cd "$(dirname "${BASH_SOURCE[0]}")/../../.." && pwd)
EVAL_DIR=${EVAL_DIR:-./playground/data/eval}
source "$ROOT/scripts/python.sh"
FLAGS=("$@")

# model_name PATH: the last part of a path or hub id; of a folder checkpoint-N, the folder above as well.
model_name() {
    local path=$1
    if [[ -d $path ]]; then path=$(cd "$path" && pwd); fi
    local name=$(basename "$path")
    if [[ $name == checkpoint-* && $path == ?*/* ]]; then name=$(basename "$(dirname "$path")")_$name; fi
    echo "$name"
}

# run_name FLAG...: the model's name, then each flag that changes answers.
run_name() {
    local model=llava-demo suffix="" flag value
    while (($#)); do
        flag=$1 value=""
        shift
        if [[ $flag == *=* ]]; then
            value=${flag#*=} flag=${flag%%=*}
        elif (($#)) && [[ $1 != --* ]]; then
            value=$1
            shift
        fi
        case $flag in
            --model-path) model=$(model_name "$value") ;;
            --batch-size | --batch-tokens | --workers | --device | --resume | --no-resume) ;;
            --limit | --skip-unreadable) ;;
            *) suffix+="_${flag#--}${value:+-${value//\//-}}" ;;
        esac
    done
    echo "$model$suffix"
}

# need PATH HOW...: ends the script unless every PATH is there; says how to get those that are not.
need() {
    local missing=0
    while (($#)); do
        if [[ ! -e $1 ]]; then
            printf '%s: %s is missing\n  get %s\n' "$(basename "$0")" "$1" "$2" >&2
            missing=1
        fi
        shift 2
    done
    if ((missing)); then exit 3; fi
}

# benchmark NAME FLAG...: reads what llava/eval declares of a benchmark (DIR, QUESTIONS, RUNNER, ASK, SCORER, LABELS), and
# ends the script if data are missing.
benchmark() {
    local facts
    facts=$("$PYTHON" -m llava.eval.benchmarks "$1" --eval-dir "$EVAL_DIR" "${@:2}") || exit
    eval "$facts"
    need "${NEEDED[@]}"
}

# prepare NAME: writes the questions of a benchmark that comes as Parquet files, unless they are those of these files.
prepare() {
    "$PYTHON" "$ROOT/scripts/prepare_eval.py" "$1" "$DIR" --if-changed || exit
}

# check COMMAND...: ends the script, before anything is answered, if the benchmark's labels do not fit its questions.
check() {
    "$PYTHON" "$@" || exit
}

# check_labels: the same with the declared labels.
check_labels() {
    check -m "$SCORER" "${LABELS[@]}" --check "$QUESTIONS"
}

# ask PARTS OUT FLAG...: answers the declared questions; see answer.
ask() {
    answer "$RUNNER" "$1" "$2" ${ASK[@]+"${ASK[@]}"} "${@:3}"
}

# score FILE FLAG...: scores answers with the declared labels.
score() {
    "$PYTHON" -m "$SCORER" "${LABELS[@]}" --result-file "$1" --json "${SCORE_FILE:-$DIR/scores/$NAME.json}" "${@:2}"
}

# run_benchmark: checks the labels, answers the questions, scores the answers.
run_benchmark() {
    check_labels
    ask "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl"
    score "$DIR/answers/$NAME.jsonl"
}

# answer MODULE PARTS OUT FLAG...: answers questions, one process for each GPU; PARTS/N_I.jsonl, merged into OUT.
answer() {
    local module=$1 parts=$2 out=$3 gpus pids=() failed=0 code i
    shift 3
    IFS=',' read -ra gpus <<< "${CUDA_VISIBLE_DEVICES:-}"
    local count=${#gpus[@]}
    ((count)) || count=1
    refuse_others "$out"
    mkdir -p "$parts" "$(dirname "$out")"
    trap 'kill "${pids[@]}" 2> /dev/null; wait; exit 130' INT TERM
    for ((i = 0; i < count; i++)); do
        (
            if ((${#gpus[@]})); then export CUDA_VISIBLE_DEVICES=${gpus[i]}; fi
            exec "$PYTHON" -m "$module" "$@" --answers-file "$parts/${count}_$i.jsonl" \
                --num-chunks "$count" --chunk-idx "$i" ${FLAGS[@]+"${FLAGS[@]}"}
        ) &
        pids+=($!)
    done
    for i in "${!pids[@]}"; do
        code=0
        wait "${pids[i]}" || code=$?
        if ((code > failed)); then failed=$code; fi
    done
    trap - INT TERM
    if ((failed == 2)); then # a process said what is wrong with its input
        if compgen -G "$parts/*.jsonl" > /dev/null; then
            echo "$(basename "$0"): CKPT=NAME, here $NAME, names another run and so other files of answers" >&2
        fi
        exit 2
    fi
    if ((failed)); then
        local hint="start it again"
        if [[ " ${FLAGS[*]-} " == *" --skip-unreadable"* ]]; then hint="*.errors.jsonl in $parts name the others"; fi
        echo "$(basename "$0"): not all questions were answered; the finished ones are kept, $hint" >&2
        exit 1
    fi
    local limit=$(find_limit) take=(cat)
    if [[ $limit ]]; then # a part may have the answers of an earlier run without it, in the questions' order
        take=(head -n "$limit") out=${out%.jsonl}.limit.jsonl
    fi
    for ((i = 0; i < count; i++)); do "${take[@]}" "$parts/${count}_$i.jsonl"; done > "$out.part"
    mv "$out.part" "$out"
    if [[ $limit ]]; then
        echo "$(basename "$0"): no score over a part of the benchmark (--limit); its answers are in $out"
        exit 0
    fi
}

# find_limit: prints N of --limit N or --limit=N, the last one that was given.
find_limit() {
    local flag before="" limit=""
    for flag in ${FLAGS[@]+"${FLAGS[@]}"}; do
        if [[ $before == --limit ]]; then limit=$flag; fi
        if [[ $flag == --limit=* ]]; then limit=${flag#*=}; fi
        before=$flag
    done
    echo "$limit"
}

# refuse_others FILE: ends the script if FILE has answers of another program, such as those that LLaVA publishes.
refuse_others() {
    if [[ -s $1 ]] && grep -qv '"metadata": {"index": ' "$1"; then
        echo "$(basename "$0"): $1 has answers of another program, and stays as it is; give the run another CKPT=NAME" >&2
        exit 2
    fi
}

# refuse_own FLAG...: ends the script if a flag is one that it sets itself, which would break the run at its end.
refuse_own() {
    local flag
    for flag in "$@"; do
        case ${flag%%=*} in
            -h | --help)
                sed -n 's/^# //p;/^source/q' "$0"
                sed -n '/^#/!q;s/^#[ ]\{0,1\}//p' "$ROOT/scripts/v1_5/eval/common.sh"
                exit 0
                ;;
            --answers-file | --question-file | --image-folder | --num-chunks | --chunk-idx)
                echo "$(basename "$0"): ${flag%%=*} is set by this script; CKPT names the run, EVAL_DIR the data" >&2
                exit 2
                ;;
        esac
    done
}

refuse_own "$@"
NAME=${CKPT:-$(run_name "$@")}
