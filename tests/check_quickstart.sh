#!/usr/bin/env bash
# After make quickstart: its claim, mIoU of at least 0.70 on scenes that training never saw.
set -euo pipefail
scores=$(.venv/bin/python tools/val.py --config configs/quickstart.yaml \
    --model_path output/quickstart/best_model/model.pdparams)
grep -E "mIoU: 0\.[789]" <<<"$scores"
