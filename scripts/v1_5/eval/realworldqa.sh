#!/usr/bin/env bash
# RealWorldQA: all, multiple-choice and open questions. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/realworldqa
need "$DIR" "hf download xai-org/RealworldQA --repo-type dataset --local-dir $DIR"
[[ -f $DIR/questions.jsonl ]] || "$PYTHON" "$ROOT/scripts/prepare_eval.py" realworldqa "$DIR"

check -m llava.eval.eval_realworldqa --question-file "$DIR/questions.jsonl" --check "$DIR/questions.jsonl"
answer llava.eval.model_vqa_loader "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl" --temperature 0 \
    --question-file "$DIR/questions.jsonl" --image-folder "$DIR"
"$PYTHON" -m llava.eval.eval_realworldqa --question-file "$DIR/questions.jsonl" \
    --result-file "$DIR/answers/$NAME.jsonl" --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
