#!/usr/bin/env bash
# ScienceQA: all questions, those with an image, and by subject, context and grade. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/scienceqa
SOURCE="https://github.com/lupantech/ScienceQA (data/scienceqa)"
need "$DIR/llava_test_CQM-A.json" "$ANNOTATIONS" \
    "$DIR/problems.json" "problems.json of $SOURCE, into $DIR" \
    "$DIR/pid_splits.json" "pid_splits.json of $SOURCE, into $DIR" \
    "$DIR/images/test" "the test images of $SOURCE, as $DIR/images/test"

check -m llava.eval.eval_science_qa --base-dir "$DIR" --check "$DIR/llava_test_CQM-A.json"
answer llava.eval.model_vqa_science "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl" --single-pred-prompt \
    --temperature 0 --question-file "$DIR/llava_test_CQM-A.json" --image-folder "$DIR/images/test"
"$PYTHON" -m llava.eval.eval_science_qa --base-dir "$DIR" --result-file "$DIR/answers/$NAME.jsonl" \
    --output-file "$DIR/answers/${NAME}_output.json" --output-result "$DIR/answers/${NAME}_result.json" \
    --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
