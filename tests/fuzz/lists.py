"""Any file list gives a data set of pairs or an InputError."""

import copy
import tempfile
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["paddleseg", "paddleseg_segformer"], enable_loader_override=False
):
    from paddleseg_segformer.config import build, load_config
    from paddleseg_segformer.errors import InputError

from fuzzing import check_error, fuzz

FOLDER = Path(tempfile.mkdtemp())
CONFIG = f"""
batch_size: 1
iters: 1
train_dataset:
  type: Dataset
  dataset_root: {FOLDER}
  train_path: {FOLDER}/train.txt
  num_classes: 3
  mode: train
  transforms: []
optimizer: {{type: AdamW}}
lr_scheduler: {{type: WarmupPolynomialDecay, learning_rate: 0.1}}
loss: {{types: [{{type: CrossEntropyLoss}}], coef: [1]}}
model: {{type: SegFormer, embedding_dim: 4, backbone: {{type: MixVisionTransformer_B0}}}}
"""
(FOLDER / "config.yml").write_text(CONFIG)
(FOLDER / "train.txt").write_text("a.png b.png\n")
LOADED = load_config(FOLDER / "config.yml")


def one_input(data):
    (FOLDER / "train.txt").write_bytes(data)
    try:
        (dataset,) = build(copy.deepcopy(LOADED), "train_dataset")
    except InputError as error:
        check_error(error)
        return
    for image, label in dataset.file_list:
        assert image and label


if __name__ == "__main__":
    fuzz(one_input, [b"a.png b.png\nc/d.jpg c/d.png\n", b"\xef\xbb\xbfa b\r\n\r\nc d", b"a\tb\n"])
