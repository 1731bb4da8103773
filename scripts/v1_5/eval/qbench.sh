#!/usr/bin/env bash
# Q-Bench: accuracy on the development set, and the submission: qbench.sh [dev | test] FLAG...
# SPLIT: the questions (default: llvisionqa_dev). Flags and environment: common.sh.
case ${1:-} in
    dev | test)
        if [[ ${QBENCH_LANG:-en} == zh ]]; then
            if [[ $1 == dev ]]; then SPLIT=质衡-问答-验证集; else SPLIT=质衡-问答-测试集; fi
        else
            SPLIT=llvisionqa_$1
        fi
        shift
        ;;
esac
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark qbench ${SPLIT:+--split "$SPLIT"}

check_labels
ask "$DIR/answers/$SPLIT/$NAME" "$DIR/answers/$SPLIT/$NAME.jsonl" --lang "${QBENCH_LANG:-en}"
SCORE_FILE=${SCORE_FILE:-$DIR/scores/$SPLIT/$NAME.json} score "$DIR/answers/$SPLIT/$NAME.jsonl" \
    --upload-file "$DIR/answers_upload/$SPLIT/$NAME.json"
