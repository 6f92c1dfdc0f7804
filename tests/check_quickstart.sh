#!/usr/bin/env bash
# Run after make quickstart: checks that its model reaches an mIoU of 0.70 on the validation scenes.
set -euo pipefail
scores=$(.venv/bin/python tools/val.py --config configs/quickstart.yaml \
    --model_path output/quickstart/best_model/model.pdparams)
grep -E "mIoU: 0\.[789]" <<<"$scores"
