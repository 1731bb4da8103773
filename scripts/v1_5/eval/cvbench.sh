#!/usr/bin/env bash
# CV-Bench: 2D, 3D, overall, by source and task. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark cvbench
prepare cvbench
run_benchmark
