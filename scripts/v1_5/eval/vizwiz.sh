#!/usr/bin/env bash
# VizWiz: the file for its server. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark vizwiz

check "$ROOT/scripts/convert_vizwiz_for_submission.py" --annotation-file "$QUESTIONS" --check
ask "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl"
"$PYTHON" "$ROOT/scripts/convert_vizwiz_for_submission.py" --annotation-file "$QUESTIONS" \
    --result-file "$DIR/answers/$NAME.jsonl" --result-upload-file "$DIR/answers_upload/$NAME.json"
echo "submit it at the VizWiz challenge on https://eval.ai"
