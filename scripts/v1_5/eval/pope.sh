#!/usr/bin/env bash
# POPE: accuracy, precision, recall, F1 and share of "yes". Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/pope
QUESTIONS=$DIR/llava_pope_test.jsonl
need "$QUESTIONS" "$ANNOTATIONS" \
    "$DIR/coco" "the folder of https://github.com/AoiDragon/POPE/tree/e3e3926/output/coco, as $DIR/coco (later label \
files do not fit LLaVA's questions)" \
    "$DIR/val2014" "http://images.cocodataset.org/zips/val2014.zip, unpacked in $DIR"

LABELS=(--annotation-dir "$DIR/coco" --question-file "$QUESTIONS")
check -m llava.eval.eval_pope "${LABELS[@]}" --check "$QUESTIONS"
answer llava.eval.model_vqa_loader "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl" --temperature 0 \
    --question-file "$QUESTIONS" --image-folder "$DIR/val2014"
"$PYTHON" -m llava.eval.eval_pope "${LABELS[@]}" \
    --result-file "$DIR/answers/$NAME.jsonl" --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
