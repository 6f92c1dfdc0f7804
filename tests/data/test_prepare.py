"""File lists of two folders, and masks of colors."""

import re

import pytest

from paddleseg_segformer import InputError
from paddleseg_segformer.data.prepare import write_lists


def touch(root, *names):
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()


@pytest.fixture
def ten(tmp_path):
    """Ten pairs, of several types and in subfolders, and some that are none."""
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


def test_the_seed_and_the_share_decide(ten):
    found = []
    for seed in (0, 0, 1):
        write_lists(ten, "images", "masks", (0.5, 0.5, 0.0), seed=seed, force=True)
        found.append((ten / "train.txt").read_text())
    assert found[0] == found[1] != found[2]
    assert not (ten / "test.txt").exists()


def test_a_set_that_is_split_already_gets_its_lists_one_by_one(ten):
    assert write_lists(ten, "images/day_0", "masks/day_0", (1, 0, 0)) == {"train": 5}
    assert write_lists(ten, "images/day_1", "masks/day_1", (0, 1, 0)) == {"val": 5}
    assert all(image.startswith("images/day_1/") for image, _ in lines(ten / "val.txt"))


def test_a_postfix_tells_image_and_mask_of_one_folder_apart(tmp_path, caplog):
    touch(tmp_path, "a.jpg", "a_mask.png", "b.jpg", "b_mask.png", "c.jpg")
    write_lists(tmp_path, ".", ".", (0.5, 0.5, 0.0), postfix=("", "_mask"))
    pairs = lines(tmp_path / "train.txt") + lines(tmp_path / "val.txt")
    assert sorted(pairs) == [["a.jpg", "a_mask.png"], ["b.jpg", "b_mask.png"]]
    assert "1 images have no mask, c.jpg for one: left out" in caplog.text


def test_folders_may_be_named_from_the_top(ten, monkeypatch):
    monkeypatch.chdir(ten.parent)
    write_lists(ten.name, ten / "images", ten / "masks", (1, 0, 0))
    assert ["images/day_0/0.png", "masks/day_0/0.png"] in lines(ten / "train.txt")


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
        (["images/a.jpg"], {}, "masks: no such folder; name folders inside"),
        (
            ["images/a.jpg", "images/a.png", "masks/a.png"],
            {},
            "a.png: has the same name as .*a.jpg",
        ),
        (["images/a.jpg", "masks/a.png"], {}, "0.7 0.3 0: leaves none of 1 for val"),
        (["images/a.jpg", "masks/a.png"], {"shares": (0.8, 0.3, 0)}, "--split 0.8 0.3 0: must be"),
        (
            ["images/a.jpg", "masks/a.png", "train.txt"],
            {"shares": (1, 0, 0)},
            "train.txt: is there",
        ),
    ],
)
def test_what_cannot_be_is_told(files, options, message, tmp_path):
    touch(tmp_path, *files)
    with pytest.raises(InputError, match=message):
        write_lists(tmp_path, "images", "masks", **options)
    assert not (tmp_path / "val.txt").exists()
