#!/usr/bin/env bash
# V* Bench: attributes, relations, overall, from generated letters. Flags and environment: common.sh.
# PROTOCOL=likelihood asks which option is the likeliest answer, as the authors of V* do.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
DIR=$EVAL_DIR/vstar
need "$DIR/test_questions.jsonl" "hf download craigwu/vstar_bench --repo-type dataset --local-dir $DIR"

case ${PROTOCOL:-letter} in
    letter) MODULE=llava.eval.model_vqa_loader ;;
    likelihood) MODULE=llava.eval.vstar_likelihood NAME=${NAME}_likelihood ;;
    *) echo "vstar.sh: PROTOCOL is $PROTOCOL; it must be letter or likelihood" >&2 && exit 2 ;;
esac
check -m llava.eval.eval_vstar --question-file "$DIR/test_questions.jsonl" --check "$DIR/test_questions.jsonl"
answer "$MODULE" "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl" \
    --question-file "$DIR/test_questions.jsonl" --image-folder "$DIR"
"$PYTHON" -m llava.eval.eval_vstar --question-file "$DIR/test_questions.jsonl" \
    --result-file "$DIR/answers/$NAME.jsonl" --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
