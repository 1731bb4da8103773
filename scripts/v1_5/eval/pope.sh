#!/usr/bin/env bash
# POPE: accuracy, precision, recall, F1 and share of "yes". Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark pope
run_benchmark
