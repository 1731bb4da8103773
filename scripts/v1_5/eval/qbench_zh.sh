#!/usr/bin/env bash
# Q-Bench in Chinese, as qbench.sh: qbench_zh.sh [dev | test] FLAG...
case ${1:-} in
    dev | test) ;;
    *) set -- dev "$@" ;;
esac
QBENCH_LANG=zh exec bash "$(dirname "${BASH_SOURCE[0]}")/qbench.sh" "$@"
