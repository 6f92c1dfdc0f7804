"""The synthetic scenes are reproducible, valid, and different in training and validation."""

import cv2
import numpy as np
import pytest

from paddleseg_segformer import ADE20K
from paddleseg_segformer.data import scenes
from paddleseg_segformer.data.scenes import CLASSES, UNLABELED, draw_scene, write_scenes

TRAIN, VAL, SIZE = 40, 24, (192, 144)
ANNOTATION_VALUES = {i + 1 for i in CLASSES.values()}


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    root = tmp_path_factory.mktemp("scenes")
    write_scenes(root, train=TRAIN, val=VAL, size=SIZE, seed=3)
    return root


@pytest.fixture(scope="module")
def splits(root):
    """{split: (images [N, H, W, 3] RGB, labels [N, H, W])}, read back from the files."""

    def read(folder):
        paths = map(str, sorted(folder.iterdir()))
        return np.stack([cv2.imread(path, cv2.IMREAD_UNCHANGED) for path in paths])

    return {
        split: (read(root / "images" / split)[..., ::-1], read(root / "annotations" / split))
        for split in ("training", "validation")
    }


def files(root):
    return {str(f.relative_to(root)): f.read_bytes() for f in root.rglob("*") if f.is_file()}


def rng(*seed):
    return np.random.default_rng(seed)


def test_the_layout_is_ade20ks(root):
    expected = set()
    for split, stem, count in (("training", "train", TRAIN), ("validation", "val", VAL)):
        for k in range(1, count + 1):
            expected |= {
                f"images/{split}/scene_{stem}_{k:08d}.jpg",
                f"annotations/{split}/scene_{stem}_{k:08d}.png",
            }
    assert set(files(root)) == expected


def test_color_masks_have_the_colors_of_labels_txt(root, tmp_path):
    """At the classes of ADE20K's layout, and black where that is unlabeled."""
    write_scenes(tmp_path, train=3, val=1, size=SIZE, seed=3, color_masks=True)
    names = {"train_0001", "train_0002", "train_0003", "val_0001"}
    expected = {"labels.txt", *(f"images/{n}.jpg" for n in names)}
    assert set(files(tmp_path)) == expected | {f"colored/{n}.png" for n in names}
    lines = [line.split() for line in (tmp_path / "labels.txt").read_text().splitlines()]
    colors = {tuple(map(int, color)): CLASSES[name] + 1 for name, *color in lines}
    assert sorted([*colors.values()]) == sorted(ANNOTATION_VALUES)
    colors[0, 0, 0] = UNLABELED
    for split, stem, k in (("training", "train", 2), ("validation", "val", 1)):
        image = f"images/{split}/scene_{stem}_{k:08d}.jpg"
        assert (root / image).read_bytes() == (tmp_path / f"images/{stem}_000{k}.jpg").read_bytes()
        mask = cv2.imread(str(tmp_path / f"colored/{stem}_000{k}.png"))[..., ::-1]
        annotation = root / f"annotations/{split}/scene_{stem}_{k:08d}.png"
        values = [colors[tuple(pixel)] for pixel in mask.reshape(-1, 3).tolist()]
        assert np.array_equal(values, cv2.imread(str(annotation), cv2.IMREAD_GRAYSCALE).ravel())


@pytest.mark.parametrize("split", ["training", "validation"])
def test_annotations_are_8_bit_maps_of_the_images_size(splits, split):
    images, labels = splits[split]
    assert images.shape[1:] == (SIZE[1], SIZE[0], 3) and images.dtype == np.uint8
    assert labels.shape == images.shape[:3] and labels.dtype == np.uint8


def test_fewer_scenes_are_the_same_scenes(root, tmp_path):
    write_scenes(tmp_path, train=2, val=3, size=SIZE, seed=3)
    few, many = files(tmp_path), files(root)
    assert len(few) == 2 * (2 + 3)
    assert all(many[name] == content for name, content in few.items())


def test_writing_again_changes_nothing(tmp_path):
    write_scenes(tmp_path, train=1, val=1)
    first = files(tmp_path)
    write_scenes(str(tmp_path), train=1, val=1)
    assert files(tmp_path) == first


def test_another_seed_gives_other_scenes(root, tmp_path):
    write_scenes(tmp_path, train=2, val=2, size=SIZE, seed=4)
    other = files(root)
    assert all(other[name] != content for name, content in files(tmp_path).items())


def test_no_scene_is_drawn_twice(splits):
    labels = np.concatenate([labels for _, labels in splits.values()])
    assert len({label.tobytes() for label in labels}) == TRAIN + VAL


def test_class_ids_are_ade20ks():
    assert {name: ADE20K.CLASS_NAMES.index(name) for name in CLASSES} == CLASSES


@pytest.mark.parametrize("split", ["training", "validation"])
def test_every_class_is_frequent_and_no_other_occurs(splits, split):
    _, labels = splits[split]
    assert set(np.unique(labels)) == ANNOTATION_VALUES | {UNLABELED}
    for value in ANNOTATION_VALUES:
        here = labels == value
        assert here.any(axis=(1, 2)).mean() >= 0.3
        assert here.mean() >= 0.02


@pytest.mark.parametrize("split", ["training", "validation"])
def test_unlabeled_pixels_are_few(splits, split):
    share = (splits[split][1] == UNLABELED).mean()
    assert 0.001 < share < 0.08


def test_cars_are_big_enough_to_segment(splits):
    smaller_sides = []
    for label in splits["validation"][1]:
        car = np.uint8(label == CLASSES["car"] + 1)
        _, _, boxes, _ = cv2.connectedComponentsWithStats(car)
        smaller_sides += [min(width, height) for _, _, width, height, _ in boxes[1:]]
    assert np.median(smaller_sides) >= 20


def test_cars_have_an_unlabeled_outline(splits):
    """Nearly always between a car and the road beside it."""
    labels = np.concatenate([labels for _, labels in splits.values()])
    left, right = labels[:, :, :-1], labels[:, :, 1:]
    car, road = CLASSES["car"] + 1, CLASSES["road"] + 1

    def borders(a, b):
        return ((left == a) & (right == b)).sum() + ((left == b) & (right == a)).sum()

    assert borders(car, road) < 0.1 * borders(car, UNLABELED)


def test_near_objects_hide_far_ones(monkeypatch):
    """The nearer an object, the lower its foot is in the image."""
    feet = []
    for name in ("draw_house", "draw_tree", "draw_boulder", "draw_car"):
        monkeypatch.setattr(scenes, name, lambda scene, x, y, *width: feet.append(y))
    for seed in range(5):
        feet.clear()
        draw_scene(rng(seed), SIZE)
        assert feet == sorted(feet) and len(feet) > 2


def test_label_borders_are_image_edges(splits):
    """Along the labels' borders the image changes more than elsewhere, and not 3 pixels away."""
    images, labels = splits["validation"]
    step = np.abs(np.diff(images.astype(int), axis=2)).sum(-1)
    border = np.diff(labels.astype(int), axis=2) != 0
    on, beside = step[border].mean(), step[np.roll(border, 3, axis=2)].mean()
    assert on > 1.5 * beside and on > 2 * step.mean()


def test_colors_are_red_green_blue(splits):
    images, labels = splits["training"]
    red, green, blue = images[labels == CLASSES["field"] + 1].mean(0)  # ripe corn
    assert red > green > blue


def test_color_helps_but_does_not_suffice(splits):
    """Nearest mean color beats the most frequent class, and is far from solving the task."""
    (images, labels), (unseen, truth) = splits["training"], splits["validation"]
    values = np.array(sorted(ANNOTATION_VALUES))
    means = np.stack([images[labels == value].mean(0) for value in values])
    pixels, truth = unseen[truth != UNLABELED][::97], truth[truth != UNLABELED][::97]
    guess = values[((pixels[:, None] - means) ** 2).sum(-1).argmin(1)]
    commonest = max((truth == value).mean() for value in values)
    assert 1.5 * commonest < (guess == truth).mean() < 0.8


@pytest.mark.parametrize("size", [(96, 96), (97, 131), (256, 96), (160, 320), (320, 240)])
def test_sizes_from_96(size):
    image, label = draw_scene(rng(0), size)
    assert image.shape == (size[1], size[0], 3) and image.dtype == np.uint8
    assert label.shape == (size[1], size[0]) and label.dtype == np.uint8
    assert set(np.unique(label)) <= ANNOTATION_VALUES | {UNLABELED}
    assert len(np.unique(label)) >= 4


def test_a_scene_depends_on_its_generator_alone():
    (image, label), (again, label_again) = draw_scene(rng(5), SIZE), draw_scene(rng(5), SIZE)
    assert (image == again).all() and (label == label_again).all()


def test_a_smaller_size_is_an_error(tmp_path):
    with pytest.raises(ValueError, match="96"):
        write_scenes(tmp_path, train=1, val=1, size=(192, 95))
    assert not any(tmp_path.iterdir())
