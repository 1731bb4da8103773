#!/usr/bin/env bash
# MME: perception, cognition and the fourteen tasks. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/MME
need "$DIR/llava_mme.jsonl" "$ANNOTATIONS" \
    "$DIR/MME_Benchmark_release_version" "MME's release, as its authors give it on request at \
https://github.com/BradyFU/Awesome-Multimodal-Large-Language-Models/tree/Evaluation, unpacked in $DIR"

check -m llava.eval.eval_mme --data-dir "$DIR/MME_Benchmark_release_version" --check "$DIR/llava_mme.jsonl"
answer llava.eval.model_vqa_loader "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl" --temperature 0 \
    --question-file "$DIR/llava_mme.jsonl" --image-folder "$DIR/MME_Benchmark_release_version"
"$PYTHON" -m llava.eval.eval_mme --data-dir "$DIR/MME_Benchmark_release_version" \
    --result-file "$DIR/answers/$NAME.jsonl" --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
