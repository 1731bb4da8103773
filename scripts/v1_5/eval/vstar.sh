#!/usr/bin/env bash
# V* Bench: attributes, relations, overall, from generated letters. Flags and environment: common.sh.
# PROTOCOL=likelihood asks which option is the likeliest answer, as the authors of V* do.
source "$(dirname "${BASH_SOURCE[0]}")/common.sh"
benchmark vstar

case ${PROTOCOL:-letter} in
    letter) ;;
    likelihood) RUNNER=llava.eval.vstar_likelihood NAME=${NAME}_likelihood ;;
    *) echo "vstar.sh: PROTOCOL is $PROTOCOL; it must be letter or likelihood" >&2 && exit 2 ;;
esac
run_benchmark
