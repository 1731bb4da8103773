#!/usr/bin/env bash
# LLaVA-Bench: a judge's scores, relative to GPT-4's answers. OPENAI_API_KEY has the judge's key, OPENAI_BASE_URL the
# address of another server than OpenAI's; without both the questions are answered, and nobody is asked.
#   JUDGE   the model that reviews (default: gpt-4-0613)
# Flags and other variables: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark llavabench
ANSWERS=$DIR/answers/$NAME.jsonl
REVIEWED=$NAME${JUDGE:+_${JUDGE//\//-}}
REVIEWS=$DIR/reviews/$REVIEWED.jsonl

check_labels
ask "$DIR/answers/$NAME" "$ANSWERS"
if [[ -z ${OPENAI_API_KEY:-}${OPENAI_BASE_URL:-} ]]; then
    echo "the answers are in $ANSWERS; set OPENAI_API_KEY or OPENAI_BASE_URL and start it again to have them reviewed"
    exit 0
fi
"$PYTHON" -m "$SCORER" --question "$QUESTIONS" "${LABELS[@]}" "$ANSWERS" --output "$REVIEWS" ${JUDGE:+--judge "$JUDGE"}
"$PYTHON" -m llava.eval.summarize_gpt_review --files "$REVIEWS" --json "${SCORE_FILE:-$DIR/scores/$REVIEWED.json}"
