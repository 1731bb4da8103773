#!/usr/bin/env bash
# GQA: accuracy by kind of answer and question, and the file for its own eval.py. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
SPLIT=llava_gqa_testdev_balanced
DIR=$EVAL_DIR/gqa
SOURCE="https://cs.stanford.edu/people/dorarad/gqa/download.html"
need "$DIR/$SPLIT.jsonl" "$ANNOTATIONS" \
    "$DIR/data/testdev_balanced_questions.json" "the questions of $SOURCE, into $DIR/data" \
    "$DIR/data/images" "the images of $SOURCE, as $DIR/data/images"

MERGED=$DIR/answers/$SPLIT/$NAME/merge.jsonl
check -m llava.eval.eval_gqa --question-file "$DIR/data/testdev_balanced_questions.json" --check "$DIR/$SPLIT.jsonl"
answer llava.eval.model_vqa_loader "$DIR/answers/$SPLIT/$NAME" "$MERGED" --temperature 0 \
    --question-file "$DIR/$SPLIT.jsonl" --image-folder "$DIR/data/images"
"$PYTHON" "$ROOT/scripts/convert_gqa_for_eval.py" --src "$MERGED" --dst "$DIR/data/testdev_balanced_predictions.json"
"$PYTHON" -m llava.eval.eval_gqa --question-file "$DIR/data/testdev_balanced_questions.json" --result-file "$MERGED" \
    --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
