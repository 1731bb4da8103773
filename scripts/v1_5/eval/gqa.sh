#!/usr/bin/env bash
# GQA: accuracy by kind of answer and question, and the file for its own eval.py.
# SPLIT: the questions (default: llava_gqa_testdev_balanced). Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark gqa ${SPLIT:+--split "$SPLIT"}
MERGED=$DIR/answers/$SPLIT/$NAME/merge.jsonl

check_labels
ask "$DIR/answers/$SPLIT/$NAME" "$MERGED"
"$PYTHON" "$ROOT/scripts/convert_gqa_for_eval.py" --src "$MERGED" --dst "$DIR/data/testdev_balanced_predictions.json"
score "$MERGED"
