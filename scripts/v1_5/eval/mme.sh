#!/usr/bin/env bash
# MME: perception, cognition and the fourteen tasks. Flags and environment: common.sh.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark mme
run_benchmark
