#!/usr/bin/env bash
# SEED-Bench: images, videos, by type of question; the file for its leaderboard. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark seed
MERGED=$DIR/answers/$NAME/merge.jsonl

check_labels
ask "$DIR/answers/$NAME" "$MERGED"
"$PYTHON" "$ROOT/scripts/convert_seed_for_submission.py" "${LABELS[@]}" --result-file "$MERGED" \
    --result-upload-file "$DIR/answers_upload/$NAME.jsonl" --json "${SCORE_FILE:-$DIR/scores/$NAME.json}"
