#!/usr/bin/env bash
# RealWorldQA: all, multiple-choice and open questions. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark realworldqa
prepare realworldqa
run_benchmark
