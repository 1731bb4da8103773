#!/usr/bin/env bash
# VQAv2: the file for its server. SPLIT: the questions (default: llava_vqav2_mscoco_test-dev2015).
# Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark vqav2 ${SPLIT:+--split "$SPLIT"}

check "$ROOT/scripts/convert_vqav2_for_submission.py" --dir "$DIR" --split "$SPLIT" --check
ask "$DIR/answers/$SPLIT/$NAME" "$DIR/answers/$SPLIT/$NAME/merge.jsonl"
"$PYTHON" "$ROOT/scripts/convert_vqav2_for_submission.py" --dir "$DIR" --split "$SPLIT" --ckpt "$NAME"
echo "submit it at https://eval.ai/web/challenges/challenge-page/830/my-submission"
