#!/usr/bin/env bash
# ScienceQA: all questions, those with an image, and by subject, context and grade. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark sqa

check_labels
ask "$DIR/answers/$NAME" "$DIR/answers/$NAME.jsonl"
score "$DIR/answers/$NAME.jsonl" \
    --output-file "$DIR/answers/${NAME}_output.json" --output-result "$DIR/answers/${NAME}_result.json"
