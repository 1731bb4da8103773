#!/usr/bin/env bash
# MM-Vet: the file for its judge. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark mmvet

check "$ROOT/scripts/convert_mmvet_for_eval.py" --check "$QUESTIONS"
ask "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl"
"$PYTHON" "$ROOT/scripts/convert_mmvet_for_eval.py" --src "$DIR/answers/$NAME.jsonl" --dst "$DIR/results/$NAME.json" \
    --question-file "$QUESTIONS"
echo "submit it at https://huggingface.co/spaces/whyu/MM-Vet_Evaluator"
