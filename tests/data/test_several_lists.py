"""Data sets of several lists and folders, with weights."""

from collections import Counter
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from paddleseg_segformer import Dataset
from paddleseg_segformer.data import class_names, palette
from paddleseg_segformer.data.validate import check_before_training
from paddleseg_segformer.engine import distributed
from paddleseg_segformer.engine.dataloader import BatchReader, TrainBatches, TrainSampler
from paddleseg_segformer.engine.report import WorstBestImages
from paddleseg_segformer.errors import InputError


@pytest.fixture
def roots(tmp_path):
    """Folders a with two and b with three images, whose names are the same in both."""
    for folder, count in (("a", 2), ("b", 3)):
        (tmp_path / folder).mkdir()
        lines = []
        for i in range(count):
            value = 10 * (folder == "b") + i
            cv2.imwrite(str(tmp_path / folder / f"{i}.png"), np.full([4, 4, 3], value, "uint8"))
            cv2.imwrite(str(tmp_path / folder / f"{i}_mask.png"), np.full([4, 4], i, "uint8"))
            lines.append(f"{i}.png {i}_mask.png\n")
        (tmp_path / folder / "list.txt").write_text("".join(lines))
    return [tmp_path / "a", tmp_path / "b"]


def dataset(roots, mode="train", **options):
    lists = [root / "list.txt" for root in roots]
    options = {"dataset_root": roots, f"{mode}_path": lists, **options}
    return Dataset(mode, transforms=[], num_classes=3, **options)


def test_a_color_mask_names_the_command_for_its_folder(roots):
    (roots[1] / "masks").mkdir()
    cv2.imwrite(str(roots[1] / "masks/0.png"), np.zeros([4, 4, 3], "uint8"))
    (roots[1] / "list.txt").write_text("0.png masks/0.png\n")
    command = f"run segformer masks_from_colors {roots[1]} masks masks_indices, and replace masks/"
    with pytest.raises(InputError, match=command):
        check_before_training(dataset(roots))


def names(data):
    return ["/".join(image.split("/")[-2:]) for image, _ in data.file_list]


def test_the_lists_are_one_data_set(roots):
    for mode in ("train", "val", "test"):
        assert names(dataset(roots, mode)) == [
            "a/0.png",
            "a/1.png",
            "b/0.png",
            "b/1.png",
            "b/2.png",
        ]
    values = [sample["img"][0, 0, 0] for sample in dataset(roots)]
    assert values == [0, 1, 10, 11, 12]


def test_one_folder_for_all_lists(roots):
    parent = roots[0].parent
    for root in roots:
        lines = (root / "list.txt").read_text().splitlines()
        moved = [" ".join(f"{root.name}/{x}" for x in line.split()) for line in lines]
        (root / "list.txt").write_text("\n".join(moved))
    assert names(dataset(roots, dataset_root=parent))[2] == "b/0.png"


def flat(data, epochs, batch_size, **position):
    defaults = {"grad_accum_steps": 1, "first": 0, "seed": 5}
    steps = epochs * len(data) // batch_size
    sampler = TrainSampler(len(data), batch_size, steps=steps, **{**defaults, **position})
    return [item for batch in sampler for item in batch]


def test_an_epoch_has_each_image_as_often_as_its_weight(roots, monkeypatch):
    data = dataset(roots, weights=[3, 2])
    expected = {"a/0.png": 3, "a/1.png": 3, "b/0.png": 2, "b/1.png": 2, "b/2.png": 2}
    order = [names(data)[index] for _, index in flat(data, 4, 2)]
    assert len(order) == 48
    epochs = [order[i : i + 12] for i in range(0, 48, 12)]
    assert all(Counter(epoch) == expected for epoch in epochs) and epochs[0] != epochs[1]
    # From any start, and shared by two processes.
    assert flat(data, 4, 2)[16:] == flat(data, 4, 2, first=16)[: 48 - 16]
    monkeypatch.setattr(distributed, "world_size", lambda: 2)
    halves = []
    for rank in range(2):
        monkeypatch.setattr(distributed, "rank", lambda rank=rank: rank)
        halves.append(flat(data, 1, 2))
    shared = sorted(halves[0][:6] + halves[1][:6])
    assert Counter(names(data)[index] for _, index in shared) == expected


def test_repetitions_are_augmented_differently(roots):
    class Draw:
        def __call__(self, sample):
            sample["img"] = sample["img"] + np.float32(np.random.rand())
            return sample

    data = dataset(roots, weights=[4, 1])
    data.transforms.transforms = [Draw()]
    found = TrainBatches(BatchReader(data, 0, False), TrainSampler(11, 11, 1, 0, 1, 0), 0)
    (batch,) = found
    values = batch.arrays["img"].numpy()[:, 0, 0, 0]
    assert len(set(values.tolist())) == 11


def test_errors_name_the_file_of_its_folder(roots, caplog):
    (roots[1] / "1.png").unlink()
    data = dataset(roots, weights=[1, 3])
    with pytest.raises(InputError, match=rf"train_dataset: {roots[1]}/1.png does not exist as a f"):
        check_before_training(data)
    check_before_training(data, tolerant=True)
    assert "other files" not in caplog.text  # of one missing file
    (roots[1] / "list.txt").write_text("0.png\n")
    with pytest.raises(InputError, match=rf"{roots[1]}/list.txt: line 1 has 1 columns"):
        dataset(roots)


def one(roots):
    return {"train_path": roots[0] / "list.txt", "dataset_root": roots[0]}


INVALID = {
    "more folders": (
        lambda roots: {**one(roots), "dataset_root": roots},
        "dataset_root and train_path have 2 and 1 entries; give one folder, or one for each list",
    ),
    "no list": (lambda roots: {"train_path": []}, "train_path is not set"),
    "no folder": (lambda roots: {"dataset_root": [roots[0], "x"]}, "is x, which is not a folder"),
    "fewer weights": (
        lambda roots: {"weights": [2]},
        r"weights is \[2\], but train_path has 2 entries; give one",
    ),
    "weight 0": (lambda roots: {"weights": [1, 0]}, "must be a list of whole numbers above 0"),
    "a fraction": (lambda roots: {"weights": [1, 0.5]}, "must be a list of whole numbers above 0"),
    "one number": (lambda roots: {"weights": 2}, "weights is 2; it must be a list of whole"),
    "of validation": (
        lambda roots: {"mode": "val", "val_path": ["a", "b"], "weights": [1]},
        r"weights is \[1\] in mode val, where each image counts once; remove it",
    ),
}


@pytest.mark.parametrize("case", INVALID)
def test_what_does_not_fit_is_an_error(case, roots):
    make, message = INVALID[case]
    with pytest.raises(InputError, match=f"^Dataset: .*{message}"):
        dataset(roots, **make(roots))


def test_names_and_colors_are_of_the_first_folder_that_has_them(roots):
    (roots[1] / "labels.txt").write_text("sky 1 2 3\ntree\nroad\n")
    data = dataset(roots)
    assert class_names(data) == ["sky", "tree", "road"] and list(palette(data)[0]) == [1, 2, 3]
    (roots[0] / "labels.txt").write_text("sky 4 5 6\ntree\nroad\n")
    assert list(palette(data)[0]) == [4, 5, 6]


def test_folders_with_other_classes_are_an_error(roots):
    (roots[0] / "labels.txt").write_text("sky\ntree\nroad\n")
    (roots[1] / "labels.txt").write_text("sky\nroad\ntree\n")
    text = rf"{roots[1]}/labels.txt: class 1 is road, but tree in {roots[0]}/labels.txt; data sets"
    with pytest.raises(InputError, match=text):
        class_names(dataset(roots))


def test_a_report_tells_files_of_the_same_name_apart(roots):
    worst_best = WorstBestImages(dataset(roots, "val"))
    for index in (0, 2):
        label = np.zeros([4, 4], "int64")
        worst_best(index, label, label, np.diag([16, 0, 0]))
    assert {image.name for pair in worst_best.gather() for image in pair} == {
        f"{root.as_posix()}/0.png" for root in roots
    }
    single = SimpleNamespace(file_list=dataset(roots).file_list, dataset_root=roots[0])
    worst_best = WorstBestImages(SimpleNamespace(**vars(single), ignore_index=255))
    worst_best(0, label, label, np.diag([16, 0, 0]))
    assert worst_best.gather()[0][0].name == "0.png"
