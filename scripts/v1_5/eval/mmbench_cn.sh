#!/usr/bin/env bash
# MMBench in Chinese, as mmbench.sh. SPLIT: the table (default: mmbench_dev_cn_20231003).
export SPLIT=${SPLIT:-mmbench_dev_cn_20231003} MMBENCH_FOLDER=mmbench_cn MMBENCH_LANG=cn
exec bash "$(dirname "${BASH_SOURCE[0]}")/mmbench.sh" "$@"
