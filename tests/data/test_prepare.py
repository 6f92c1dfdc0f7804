"""File lists of two folders, and class indices from color masks."""

import re

import numpy as np
import pytest
from PIL import EpsImagePlugin, Image

from paddleseg_segformer import InputError
from paddleseg_segformer.data.dataset import read_list
from paddleseg_segformer.data.prepare import convert_color_masks, write_lists
from paddleseg_segformer.inference.predict_files import IMAGE_ENDINGS


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def ten(tmp_path):
    """Ten pairs of several file types in subfolders, and some other files."""
    for i in range(10):
        touch(tmp_path, f"images/day {i % 2}/{i}.{'JPG' if i % 2 else 'png'}".replace(" ", "_"))
        touch(tmp_path, f"masks/day_{i % 2}/{i}.png")
    touch(tmp_path, "images/.hidden.png", "masks/.hidden.png", "images/list.csv")
    return tmp_path


def lines(path, separator=" "):
    return [line.split(separator) for line in path.read_text().splitlines()]


def test_each_pair_is_in_one_list(ten):
    assert write_lists(ten, "images", "masks", (0.5, 0.3, 0.2)) == {"train": 5, "val": 3, "test": 2}
    found = [pair for split in ("train", "val", "test") for pair in lines(ten / f"{split}.txt")]
    assert len(found) == 10 and len({image for image, _ in found}) == 10
    for image, mask in found:
        assert (ten / image).is_file() and (ten / mask).is_file()
        assert re.sub("^images|png$|JPG$", "", image) == re.sub("^masks|png$", "", mask)


@pytest.mark.parametrize("ending", sorted(IMAGE_ENDINGS - {".gif"}))
def test_the_images_may_be_of_any_type_that_is_predicted(ending, tmp_path):
    touch(tmp_path, f"images/a{ending}", "masks/a.png")
    assert write_lists(tmp_path, "images", "masks", (1, 0, 0)) == {"train": 1}


def test_the_split_depends_on_seed_and_fractions(ten):
    found = []
    for seed in (0, 0, 1):
        write_lists(ten, "images", "masks", (0.5, 0.5, 0.0), seed=seed, force=True)
        found.append((ten / "train.txt").read_text())
    assert found[0] == found[1] != found[2]
    assert not (ten / "test.txt").exists()


def test_lists_of_a_data_set_that_is_split_already(ten):
    assert write_lists(ten, "images/day_0", "masks/day_0", (1, 0, 0)) == {"train": 5}
    assert write_lists(ten, "images/day_1", "masks/day_1", (0, 1, 0)) == {"val": 5}
    assert all(image.startswith("images/day_1/") for image, _ in lines(ten / "val.txt"))


def test_a_postfix_separates_images_and_masks_in_one_folder(tmp_path, caplog):
    touch(tmp_path, "a.jpg", "a_mask.png", "b.jpg", "b_mask.png", "c.jpg")
    write_lists(tmp_path, ".", ".", (0.5, 0.5, 0.0), postfix=("", "_mask"))
    pairs = lines(tmp_path / "train.txt") + lines(tmp_path / "val.txt")
    assert sorted(pairs) == [["a.jpg", "a_mask.png"], ["b.jpg", "b_mask.png"]]
    assert "1 images have no mask, such as c.jpg: left out" in caplog.text


def test_images_are_of_any_format_that_training_reads(tmp_path):
    names = [f"{i}{ending}" for i, ending in enumerate(IMAGE_ENDINGS - {".gif"})]
    touch(tmp_path, *(f"images/{name}" for name in names))
    touch(tmp_path, *(f"masks/{name.split('.')[0]}.png" for name in names))
    assert write_lists(tmp_path, "images", "masks", (1, 0, 0)) == {"train": len(names)}


def test_folders_may_be_named_from_the_top(ten, monkeypatch):
    monkeypatch.chdir(ten.parent)
    write_lists(ten.name, ten / "images", ten / "masks", (1, 0, 0))
    assert ["images/day_0/0.png", "masks/day_0/0.png"] in lines(ten / "train.txt")


def test_the_files_of_both_folders_are_sorted_and_paired_by_name(tmp_path, caplog):
    """A mask without image is left out, with a warning."""
    touch(tmp_path, *(f"images/{n}.jpg" for n in "edcba"), *(f"masks/{n}.png" for n in "fbdaec"))
    write_lists(tmp_path, "images", "masks", (0.6, 0.4, 0))
    train, val = (lines(tmp_path / f"{name}.txt") for name in ("train", "val"))
    assert train == sorted(train) and val == sorted(val) and len(train) == 3
    assert sorted(train + val) == [[f"images/{n}.jpg", f"masks/{n}.png"] for n in "abcde"]
    assert caplog.messages == ["1 masks have no image, such as masks/f.png: left out"]


def test_a_name_with_a_space_needs_another_separator(tmp_path):
    touch(tmp_path, "images/a 1.jpg", "masks/a 1.png", "images/b.jpg", "masks/b.png")
    with pytest.raises(InputError, match=r"a 1\.jpg: has the separator"):
        write_lists(tmp_path, "images", "masks", (0.5, 0.5, 0))
    write_lists(tmp_path, "images", "masks", (1, 0, 0), separator="|")
    assert lines(tmp_path / "train.txt", "|")[0] == ["images/a 1.jpg", "masks/a 1.png"]


@pytest.mark.parametrize(
    "files, options, message",
    [
        (["images/a.jpg", "masks/b.png"], {}, "images/a.jpg and masks/b.png, for example.*postfix"),
        (["images/a.jpg", "masks/a.jpg"], {}, "images/a.jpg and nothing.*masks are .png"),
        (
            ["images/a.jpg", "masks/a_m.png"],
            {"postfix": ("", "_x")},
            "^--postfix: .* before '' and '_x' .images/a.jpg and nothing, for example",
        ),
        (["images/a.jpg"], {}, "masks: no such folder; name folders inside"),
        (
            ["images/a.jpg", "images/a.png", "masks/a.png"],
            {},
            "a.png: has the same name as .*a.jpg",
        ),
        (["images/a.jpg", "masks/a.png"], {}, "0.7 0.3 0: leaves none of 1 for val"),
        (
            ["images/a.jpg", "masks/a.png"],
            {"fractions": (0.8, 0.3, 0)},
            "--split 0.8 0.3 0: must be",
        ),
        (
            ["images/a.jpg", "masks/a.png", "train.txt"],
            {"fractions": (1, 0, 0)},
            "train.txt: exists",
        ),
    ],
)
def test_list_errors(files, options, message, tmp_path):
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=message):
        write_lists(tmp_path, "images", "masks", **options)
    assert not (tmp_path / "val.txt").exists()


COLORS = [[0, 0, 0], [255, 255, 255], [0, 0, 1]]
LABELS = "none 0 0 0\nwall 255 255 255\nnear black 0 0 1\n"


@pytest.fixture
def colored_root(tmp_path):
    (tmp_path / "labels.txt").write_text(LABELS)
    (tmp_path / "colored/sub").mkdir(parents=True)
    return tmp_path


def test_every_mask_format_gives_the_same_indices(colored_root):
    labels = np.random.default_rng(0).integers(0, 2, [5, 7], dtype="uint8")
    rgb = np.array(COLORS, dtype="uint8")[labels]
    Image.fromarray(rgb).save(colored_root / "colored/rgb.png")
    Image.fromarray(np.dstack([rgb, labels])).save(colored_root / "colored/alpha.bmp")
    Image.fromarray(labels * 255).save(colored_root / "colored/sub/gray.tif")
    Image.fromarray(labels == 1).save(colored_root / "colored/bits.png")
    Image.fromarray(rgb).quantize(2).save(colored_root / "colored/palette.png")
    assert convert_color_masks(colored_root, "colored", "masks") == 5
    for name in ("rgb", "alpha", "sub/gray", "bits", "palette"):
        written = Image.open(colored_root / f"masks/{name}.png")
        np.testing.assert_array_equal(np.asarray(written), labels, err_msg=name)
        np.testing.assert_array_equal(np.asarray(written.convert("RGB")), rgb, err_msg=name)


def test_the_palette_shows_the_classes_in_their_colors(tmp_path):
    colors = [[255, 0, 0], [0, 255, 0], [0, 0, 255], [1, 2, 3]]
    text = "".join(f"c{i} {r} {g} {b}\n" for i, (r, g, b) in enumerate(colors))
    (tmp_path / "labels.txt").write_text(text)
    (tmp_path / "colored").mkdir()
    rgb = np.array([colors], dtype="uint8")
    Image.fromarray(rgb).save(tmp_path / "colored/a.bmp")
    convert_color_masks(tmp_path, "colored", "masks")
    written = Image.open(tmp_path / "masks/a.png")
    assert np.asarray(written).tolist() == [[0, 1, 2, 3]]
    np.testing.assert_array_equal(np.asarray(written.convert("RGB")), rgb)


def test_hidden_files_and_converted_masks_are_skipped(colored_root):
    Image.new("RGB", (2, 2)).save(colored_root / "colored/a.png")
    (colored_root / "colored/__MACOSX").mkdir()
    (colored_root / "colored/__MACOSX/._a.png").write_bytes(b"metadata")
    for _ in range(2):
        assert convert_color_masks(colored_root, "colored", "colored/new", force=True) == 1


def test_a_color_of_no_class_is_an_error_or_ignored(colored_root):
    rgb = np.zeros([4, 6, 3], dtype="uint8")
    rgb[1, 2], rgb[3, 5] = (0, 0, 1), (9, 8, 7)
    Image.fromarray(rgb).save(colored_root / "colored/a.png")
    with pytest.raises(InputError, match=r"a\.png: has the color 9 8 7 at x 5, y 3"):
        convert_color_masks(colored_root, "colored", "masks")
    convert_color_masks(colored_root, "colored", "masks", ignore_others=True)
    expected = np.zeros([4, 6], dtype="uint8")
    expected[1, 2], expected[3, 5] = 2, 255
    np.testing.assert_array_equal(np.asarray(Image.open(colored_root / "masks/a.png")), expected)


@pytest.mark.parametrize(
    "labels, target, message",
    [
        ("sky 1 2 3\nsea", "masks", "sea has no color"),
        ("", "masks", "nothing has no color"),
        ("sky 1 2 3\nsea 1 2 3", "masks", "same color"),
        ("".join(f"{i} {i} 0 0\n" for i in range(256)), "masks", "256 classes; .* up to 255"),
        (None, "masks", r"labels\.txt: no such file"),
        (LABELS, "colored", "name another folder"),
        (LABELS, "full", "has files; --force"),
    ],
)
def test_color_mask_errors(labels, target, message, colored_root):
    Image.new("RGB", (2, 2)).save(colored_root / "colored/a.png")
    (colored_root / "full").mkdir()
    (colored_root / "full/a.png").touch()
    if labels is None:
        (colored_root / "labels.txt").unlink()
    else:
        (colored_root / "labels.txt").write_text(labels)
    with pytest.raises(InputError, match=message):
        convert_color_masks(colored_root, "colored", target)
    assert (colored_root / "full/a.png").stat().st_size == 0


def test_missing_and_unreadable_masks_are_errors(colored_root, monkeypatch):
    with pytest.raises(InputError, match="colored: has no mask"):
        convert_color_masks(colored_root, "colored", "masks")
    with pytest.raises(InputError, match="absent: no such folder; name a folder inside"):
        convert_color_masks(colored_root, "absent", "masks")
    monkeypatch.setattr(EpsImagePlugin, "Ghostscript", lambda *_: pytest.fail("was run"))
    postscript = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\nshowpage\n"
    for content in (b"", postscript):
        (colored_root / "colored/a.png").write_bytes(content)
        with pytest.raises(InputError, match=r"a\.png: cannot be read"):
            convert_color_masks(colored_root, "colored", "masks")


@pytest.mark.parametrize("name", ["a\nb", "a\rb", "a\x85b", "a\u2028b", "a ", "\udcff"])
def test_a_name_that_a_list_cannot_hold(name, tmp_path):
    """With a separator that is in no name: a line end, a space at the end, bytes not of UTF-8."""
    touch(tmp_path, "images/a.jpg", "masks/a.png")
    (tmp_path / "images/a.jpg").rename(tmp_path / f"images/{name}.jpg")
    (tmp_path / "masks/a.png").rename(tmp_path / f"masks/{name}.png")
    if name == "a ":  # only the space before a suffix is within the name
        assert write_lists(tmp_path, "images", "masks", (1, 0, 0), separator="|") == {"train": 1}
        assert read_list(tmp_path / "train.txt", "|") == [["images/a .jpg", "masks/a .png"]]
        return
    with pytest.raises(InputError, match="has a name that a list cannot hold; rename it"):
        write_lists(tmp_path, "images", "masks", (1, 0, 0), separator="|")
    assert not (tmp_path / "train.txt").exists()


@pytest.mark.parametrize("separator", ["", "\n", "\r", "\x85", "|\n"])
def test_a_separator_that_ends_a_line(separator, ten):
    with pytest.raises(InputError, match=r"--separator .*: does not separate two names"):
        write_lists(ten, "images", "masks", separator=separator)


@pytest.mark.parametrize("separator", [" ", "\t", "|", ", "])
def test_lists_are_read_back(separator, tmp_path):
    names = ["a", "\ufeffb", "ü", "x.y", *(["c d"] if separator in "|" else [])]
    touch(tmp_path, *(f"images/{n}.jpg" for n in names), *(f"masks/{n}.png" for n in names))
    write_lists(tmp_path, "images", "masks", (1, 0, 0), separator=separator)
    pairs = read_list(tmp_path / "train.txt", separator)
    assert sorted(pairs) == sorted([f"images/{n}.jpg", f"masks/{n}.png"] for n in names)


def test_a_byte_order_mark_at_the_start_of_a_list(tmp_path):
    touch(tmp_path, "\ufeffa.jpg", "masks/\ufeffa.png")
    with pytest.raises(InputError, match="has a name that a list cannot hold"):
        write_lists(tmp_path, ".", "masks", (1, 0, 0))


def test_two_masks_that_would_be_one_file(tmp_path):
    (tmp_path / "labels.txt").write_text("a 0 0 0\nb 128 0 0\n")
    (tmp_path / "colored").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "colored/a.bmp")
    Image.new("RGB", (4, 4), (128, 0, 0)).save(tmp_path / "colored/a.png")
    with pytest.raises(InputError, match=r"a\.png: would be converted to the same .*a\.bmp"):
        convert_color_masks(tmp_path, "colored", "target")
    assert not (tmp_path / "target").exists()
