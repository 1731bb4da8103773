#!/usr/bin/env bash
# MMBench: accuracy and, with --all-rounds or a table that holds the rotations, CircularEval; the file for its server.
# SPLIT: the table (default: mmbench_dev_20230712). Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark mmbench ${SPLIT:+--split "$SPLIT"} --folder "${MMBENCH_FOLDER:-mmbench}"

is_test() { [[ _${SPLIT}_ == *_[tT][eE][sS][tT]_* ]]; }

is_test || check_labels
ask "$DIR/answers/$SPLIT/$NAME" "$DIR/answers/$SPLIT/$NAME.jsonl" --lang "${MMBENCH_LANG:-en}"
"$PYTHON" "$ROOT/scripts/convert_mmbench_for_submission.py" --annotation-file "$QUESTIONS" \
    --result-dir "$DIR/answers/$SPLIT" --upload-dir "$DIR/answers_upload/$SPLIT" --experiment "$NAME"
if is_test; then
    echo "$SPLIT has no answers: submit the file at https://mmbench.opencompass.org.cn/mmbench-submission"
else
    SCORE_FILE=${SCORE_FILE:-$DIR/scores/$SPLIT/$NAME.json} score "$DIR/answers/$SPLIT/$NAME.jsonl"
fi
