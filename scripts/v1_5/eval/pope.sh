#!/usr/bin/env bash
# POPE: accuracy, precision, recall, F1 and share of "yes". Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/pope
need "$DIR/llava_pope_test.jsonl" "$ANNOTATIONS" \
    "$DIR/coco" "the folder output/coco of https://github.com/AoiDragon/POPE, as $DIR/coco" \
    "$DIR/val2014" "http://images.cocodataset.org/zips/val2014.zip, unpacked in $DIR"

answer llava.eval.model_vqa_loader "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl" --temperature 0 \
    --question-file "$DIR/llava_pope_test.jsonl" --image-folder "$DIR/val2014"
"$PYTHON" -m llava.eval.eval_pope --annotation-dir "$DIR/coco" --question-file "$DIR/llava_pope_test.jsonl" \
    --result-file "$DIR/answers/$NAME.jsonl" --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
