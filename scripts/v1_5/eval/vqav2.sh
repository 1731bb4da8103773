#!/usr/bin/env bash
# VQAv2: the file for its server. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
SPLIT=llava_vqav2_mscoco_test-dev2015
DIR=$EVAL_DIR/vqav2
need "$DIR/$SPLIT.jsonl" "$ANNOTATIONS" \
    "$DIR/llava_vqav2_mscoco_test2015.jsonl" "$ANNOTATIONS" \
    "$DIR/test2015" "http://images.cocodataset.org/zips/test2015.zip, unpacked in $DIR"

check "$ROOT/scripts/convert_vqav2_for_submission.py" --dir "$DIR" --split "$SPLIT" --check
answer llava.eval.model_vqa_loader "$DIR/answers/$SPLIT/$NAME" "$DIR/answers/$SPLIT/$NAME/merge.jsonl" --temperature 0 \
    --question-file "$DIR/$SPLIT.jsonl" --image-folder "$DIR/test2015"
"$PYTHON" "$ROOT/scripts/convert_vqav2_for_submission.py" --dir "$DIR" --split "$SPLIT" --ckpt "$NAME"
echo "submit it at https://eval.ai/web/challenges/challenge-page/830/my-submission"
