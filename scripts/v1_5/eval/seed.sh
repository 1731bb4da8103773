#!/usr/bin/env bash
# SEED-Bench: images, videos, by type of question; the file for its leaderboard. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/seed_bench
SOURCE="https://huggingface.co/datasets/AILab-CVPR/SEED-Bench"
need "$DIR/llava-seed-bench.jsonl" "$ANNOTATIONS" \
    "$DIR/SEED-Bench.json" "SEED-Bench.json of $SOURCE, into $DIR" \
    "$DIR/SEED-Bench-image" "the images of $SOURCE, as $DIR/SEED-Bench-image, and the videos' frames beside them"

MERGED=$DIR/answers/$NAME/merge.jsonl
check -m llava.eval.eval_seed --annotation-file "$DIR/SEED-Bench.json" --check "$DIR/llava-seed-bench.jsonl"
answer llava.eval.model_vqa_loader "$DIR/answers/$NAME" "$MERGED" --temperature 0 \
    --question-file "$DIR/llava-seed-bench.jsonl" --image-folder "$DIR"
"$PYTHON" "$ROOT/scripts/convert_seed_for_submission.py" --annotation-file "$DIR/SEED-Bench.json" \
    --result-file "$MERGED" --result-upload-file "$DIR/answers_upload/$NAME.jsonl" \
    --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
