#!/usr/bin/env bash
# After make quickstart: its claim, mIoU of at least 0.70 on scenes that training never saw.
set -euo pipefail
.venv/bin/python tools/val.py --config configs/quickstart.yaml \
    --model_path output/quickstart/best_model/model.pdparams |
    tee /dev/stderr | grep -qE "mIoU: 0\.[789]"
