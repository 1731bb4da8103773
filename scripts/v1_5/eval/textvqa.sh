#!/usr/bin/env bash
# TextVQA: the VQA soft accuracy. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark textvqa
run_benchmark
