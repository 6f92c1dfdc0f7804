#!/usr/bin/env bash
# Usage: check_installed.sh PROGRAM. Trains, evaluates, predicts and exports with an installed segformer
# program, in an empty folder.
set -euo pipefail
program=$(realpath "$1")
cd "$(mktemp -d)"
config=configs/quickstart.yaml
"$program" make_scenes --train 4 --val 2 --size 96 96
"$program" train --config $config --device cpu --iters 2 --batch_size 2 --do_eval
"$program" val --config $config --device cpu --model_path output/best_model/model.pdparams
"$program" predict --model_path output/best_model --device cpu \
    --image_path data/scenes/images/validation --save_dir pictures
"$program" export --model_path output/best_model --device cpu \
    --image_path data/scenes/images/validation/*1.jpg
test "$(find pictures -name '*.png' | wc -l)" = 6
