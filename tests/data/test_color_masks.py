"""Masks of class indices from masks of colors."""

import numpy as np
import pytest
from PIL import Image

from paddleseg_segformer import InputError
from paddleseg_segformer.data.prepare import convert_color_masks

COLORS = [[0, 0, 0], [255, 255, 255], [0, 0, 1]]
LABELS = "none 0 0 0\nwall 255 255 255\nnear black 0 0 1\n"


@pytest.fixture
def root(tmp_path):
    (tmp_path / "labels.txt").write_text(LABELS)
    (tmp_path / "colored/sub").mkdir(parents=True)
    return tmp_path


def test_each_kind_of_mask_becomes_the_same_indices(root):
    labels = np.random.default_rng(0).integers(0, 2, [5, 7], dtype="uint8")
    rgb = np.array(COLORS, dtype="uint8")[labels]
    Image.fromarray(rgb).save(root / "colored/rgb.png")
    Image.fromarray(np.dstack([rgb, labels])).save(root / "colored/alpha.bmp")
    Image.fromarray(labels * 255).save(root / "colored/sub/gray.tif")
    Image.fromarray(labels == 1).save(root / "colored/bits.png")
    Image.fromarray(rgb).quantize(2).save(root / "colored/palette.png")
    assert convert_color_masks(root, "colored", "masks") == 5
    for name in ("rgb", "alpha", "sub/gray", "bits", "palette"):
        written = Image.open(root / f"masks/{name}.png")
        np.testing.assert_array_equal(np.asarray(written), labels, err_msg=name)
        np.testing.assert_array_equal(np.asarray(written.convert("RGB")), rgb, err_msg=name)


def test_what_a_system_hides_and_what_was_written_are_no_masks(root):
    Image.new("RGB", (2, 2)).save(root / "colored/a.png")
    (root / "colored/__MACOSX").mkdir()
    (root / "colored/__MACOSX/._a.png").write_bytes(b"a Mac's notes")
    for _ in range(2):
        assert convert_color_masks(root, "colored", "colored/new", force=True) == 1


def test_a_color_of_no_class_is_told_or_ignored(root):
    rgb = np.zeros([4, 6, 3], dtype="uint8")
    rgb[1, 2], rgb[3, 5] = (0, 0, 1), (9, 8, 7)
    Image.fromarray(rgb).save(root / "colored/a.png")
    with pytest.raises(InputError, match=r"a\.png: has the color 9 8 7 at x 5, y 3"):
        convert_color_masks(root, "colored", "masks")
    convert_color_masks(root, "colored", "masks", ignore_others=True)
    expected = np.zeros([4, 6], dtype="uint8")
    expected[1, 2], expected[3, 5] = 2, 255
    np.testing.assert_array_equal(np.asarray(Image.open(root / "masks/a.png")), expected)


@pytest.mark.parametrize(
    "labels, target, message",
    [
        ("sky 1 2 3\nsea", "masks", "sea has no color"),
        ("", "masks", "nothing has no color"),
        ("sky 1 2 3\nsea 1 2 3", "masks", "same color"),
        ("".join(f"{i} {i} 0 0\n" for i in range(256)), "masks", "256 classes; .* up to 255"),
        (None, "masks", r"labels\.txt: no such file"),
        (LABELS, "colored", "name another folder"),
        (LABELS, "full", "holds files; --force"),
    ],
)
def test_what_cannot_be_is_told(labels, target, message, root):
    Image.new("RGB", (2, 2)).save(root / "colored/a.png")
    (root / "full").mkdir()
    (root / "full/a.png").touch()
    if labels is None:
        (root / "labels.txt").unlink()
    else:
        (root / "labels.txt").write_text(labels)
    with pytest.raises(InputError, match=message):
        convert_color_masks(root, "colored", target)
    assert (root / "full/a.png").stat().st_size == 0


def test_a_mask_that_is_none_is_told(root):
    with pytest.raises(InputError, match="colored: holds no mask"):
        convert_color_masks(root, "colored", "masks")
    (root / "colored/a.png").touch()
    with pytest.raises(InputError, match=r"a\.png: cannot be read"):
        convert_color_masks(root, "colored", "masks")
