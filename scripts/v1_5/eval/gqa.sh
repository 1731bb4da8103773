#!/usr/bin/env bash
# GQA: accuracy by kind of answer and question, and the file for its own eval.py. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark gqa
MERGED=$DIR/answers/$SPLIT/$NAME/merge.jsonl

check_labels
ask "$DIR/answers/$SPLIT/$NAME" "$MERGED"
"$PYTHON" "$ROOT/scripts/convert_gqa_for_eval.py" --src "$MERGED" --dst "$DIR/data/testdev_balanced_predictions.json"
score "$MERGED"
