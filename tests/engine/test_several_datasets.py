"""A training run on two data sets with weights."""

from collections import Counter

import pytest
from training_runs import assert_same_weights, run, tiny_config

from paddleseg_segformer.engine import trainer as trainer_module
from paddleseg_segformer.engine.metric_writer import read_lines

pytestmark = pytest.mark.integration


def test_an_epoch_has_the_mixture_and_resuming_is_exact(scenes, tmp_path, monkeypatch, caplog):
    """Of four images once and two images three times; a step of four in the middle of an epoch."""
    caplog.set_level("INFO", "paddleseg_segformer")
    images = sorted((scenes / "images/training").glob("*.jpg"))
    lists, epoch = [], Counter()
    for name, part, weight in (("a", images[:4], 1), ("b", images[4:], 3)):
        lines = [f"{p.relative_to(scenes)} annotations/training/{p.stem}.png" for p in part]
        (tmp_path / f"{name}.txt").write_text("\n".join(lines))
        lists.append(str(tmp_path / f"{name}.txt"))
        epoch.update({str(path): weight for path in part})
    section = f"{{type: Dataset, mode: train, dataset_root: [{scenes}, {scenes}], weights: [1, 3]"
    transforms = "[{type: RandomPaddingCrop, crop_size: [64, 64]}, {type: Normalize}]"
    section += f", train_path: {lists}, num_classes: 151, transforms: {transforms}}}"
    opts = (f"train_dataset={section}", "val_dataset=null", "model.num_classes=151")
    config = tiny_config(scenes, *opts, iters=5)
    files, step = [], trainer_module.Trainer._train_step

    def record(self, micro_batches, meter):
        files.extend(file for batch in micro_batches for file in batch.files)
        step(self, micro_batches, meter)

    monkeypatch.setattr(trainer_module.Trainer, "_train_step", record)
    run(config, tmp_path / "whole")
    assert Counter(files[:10]) == Counter(files[10:]) == epoch
    assert f"{lists[1]}: 2 images, 3 x in an epoch" in caplog.text
    files_of_whole, files[:] = files[:], []
    start = str(tmp_path / "whole/iter_2")
    run(config, tmp_path / "resumed", resume_model=start, num_workers=1)
    assert files == files_of_whole[8:] and "Config changed" not in caplog.text
    whole, resumed = (tmp_path / name for name in ("whole", "resumed"))
    for name in ("model.pdparams", "ema_model.pdparams"):
        assert_same_weights(resumed / "iter_5" / name, whole / "iter_5" / name)
    losses = [[line["loss"] for line in read_lines(folder)] for folder in (whole, resumed)]
    assert losses[0][2:] == losses[1]
