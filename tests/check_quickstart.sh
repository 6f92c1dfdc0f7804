#!/usr/bin/env bash
# Usage: check_quickstart.sh LOG. Checks that the model of make quickstart, whose output is in LOG,
# reaches an mIoU of 0.85 on the validation scenes.
set -euo pipefail
miou=$(sed -n '/^== single scale/,$ s/.*#Images: .* mIoU: \([0-9.]*\) .*/\1/p' "$1" | head -n 1)
echo "mIoU of the quick start: ${miou:-missing}"
awk -v miou="$miou" 'BEGIN { exit !(miou >= 0.85) }'
