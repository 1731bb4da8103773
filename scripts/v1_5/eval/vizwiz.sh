#!/usr/bin/env bash
# VizWiz: the file for its server. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/vizwiz
need "$DIR/llava_test.jsonl" "$ANNOTATIONS" \
    "$DIR/test" "the test images of https://vizwiz.org/tasks-and-datasets/vqa/, as $DIR/test"

check "$ROOT/scripts/convert_vizwiz_for_submission.py" --annotation-file "$DIR/llava_test.jsonl" --check
answer llava.eval.model_vqa_loader "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl" --temperature 0 \
    --question-file "$DIR/llava_test.jsonl" --image-folder "$DIR/test"
"$PYTHON" "$ROOT/scripts/convert_vizwiz_for_submission.py" --annotation-file "$DIR/llava_test.jsonl" \
    --result-file "$DIR/answers/$NAME.jsonl" --result-upload-file "$DIR/answers_upload/$NAME.json"
echo "submit it at the VizWiz challenge on https://eval.ai"
