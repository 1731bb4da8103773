#!/usr/bin/env bash
# MMBench: accuracy and, with --all-rounds or a table that holds the rotations, CircularEval; the file for its server.
# SPLIT: the table (default: mmbench_dev_20230712). Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
SPLIT=${SPLIT:-mmbench_dev_20230712}
DIR=$EVAL_DIR/${MMBENCH_FOLDER:-mmbench}
TABLE=$DIR/$SPLIT.tsv
need "$TABLE" "https://download.openmmlab.com/mmclassification/datasets/mmbench/$SPLIT.tsv, into $DIR"

[[ $SPLIT == *test* ]] || check -m llava.eval.eval_mmbench --annotation-file "$TABLE" --check "$TABLE"
answer llava.eval.model_vqa_mmbench "$DIR/answers/$SPLIT/$NAME" "$DIR/answers/$SPLIT/$NAME.jsonl" \
    --single-pred-prompt --temperature 0 --lang "${MMBENCH_LANG:-en}" --question-file "$TABLE"
"$PYTHON" "$ROOT/scripts/convert_mmbench_for_submission.py" --annotation-file "$TABLE" \
    --result-dir "$DIR/answers/$SPLIT" --upload-dir "$DIR/answers_upload/$SPLIT" --experiment "$NAME"
if [[ $SPLIT == *test* ]]; then
    echo "$SPLIT has no answers: submit the file at https://mmbench.opencompass.org.cn/mmbench-submission"
else
    "$PYTHON" -m llava.eval.eval_mmbench --annotation-file "$TABLE" \
        --result-file "$DIR/answers/$SPLIT/$NAME.jsonl" --json "${SCORE_FILE:-$DIR/scores/$SPLIT/$NAME.json}"
fi
