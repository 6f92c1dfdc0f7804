"""Image formats: readable images are segmented at their size, others are named in an error."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from .cases import SIZE, Case, check, succeeds, table

COLORS = np.random.default_rng(0).integers(0, 255, [40, 56, 3]).astype("uint8")


def encoded(array, file_format, **options):
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def declared(width, height):
    """A PNG with this size in its header and little data."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 9999)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


PNG, JPEG = encoded(COLORS, "PNG"), encoded(COLORS, "JPEG", quality=95)


def predict(data, name="photo.png"):
    """``predict`` on a file of these bytes."""
    return lambda workspace: workspace.predict(workspace.write(name, data))


def train(data):
    """``train`` on a data set with one image of these bytes."""

    def make(workspace):
        workspace.image().write_bytes(data)
        return workspace.train()

    return make


def folder_named_like_an_image(workspace):
    workspace.write("photos/readme.txt")
    (workspace.root / "photos/holiday.jpg").mkdir()
    return workspace.predict(workspace.root / "photos/holiday.jpg")


def link_to_itself(workspace):
    (workspace.root / "loop.jpg").symlink_to(workspace.root / "loop.jpg")
    return workspace.predict(workspace.root / "loop.jpg")


def pipe(workspace):
    os.mkfifo(workspace.root / "pipe.jpg")
    return workspace.predict(workspace.root / "pipe.jpg")


def cut_in_the_data(workspace):
    """Training accepts it, like PaddleSeg's."""
    jpeg = encoded(np.resize(COLORS, [SIZE, SIZE, 3]), "JPEG")
    train(jpeg[: len(jpeg) // 2])(workspace)
    return workspace.with_opts()


def pipe_in_the_data(workspace):
    workspace.image().unlink()
    os.mkfifo(workspace.image())
    return workspace.train()


INVALID = [
    Case(
        "missing",
        "predict",
        lambda p: p.predict(p.root / "photo.jpg"),
        "{}/photo.jpg: no such image, folder or list of images.",
        new_process=True,
    ),
    Case(
        "empty", "predict", predict(b""), "{}/photo.png: cannot be read as an image (it is empty)."
    ),
    Case(
        "text",
        "predict",
        predict(b"hello", "photo.jpg"),
        "{}/photo.jpg: cannot be read as an image (cannot identify image file).",
    ),
    Case(
        "a web page",
        "predict",
        predict(b"<!doctype html><p>404", "photo.jpg"),
        "{}/photo.jpg: cannot be read as an image (cannot identify image file).",
    ),
    Case(
        "a PDF",
        "predict",
        predict(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "photo.pdf"),
        "{}/photo.pdf: is neither an image nor a text file of paths.",
    ),
    *[
        Case(
            f"PNG truncated at {tenth}0%",
            "predict",
            predict(PNG[: len(PNG) * tenth // 10]),
            "{}/photo.png: cannot be read as an image (image file is truncated).",
        )
        for tenth in range(1, 10)
    ],
    *[
        Case(
            f"JPEG truncated at {tenth}0%",
            "predict",
            predict(JPEG[: len(JPEG) * tenth // 10]),
            "{}/photo.png: cannot be read as an image (…runcated",
        )
        for tenth in range(1, 10)
    ],
    Case(
        "a decompression bomb",
        "predict",
        predict(declared(60000, 60000)),
        "{}/photo.png: cannot be read as an image (60000x60000 pixels of 3 bands take",
    ),
    Case(
        "an enormous width",
        "predict",
        predict(declared(1 << 30, 1)),
        "{}/photo.png: cannot be read as an image (1073741824x1 pixels of 3 bands take",
    ),
    Case(
        "a width of 0",
        "predict",
        predict(declared(0, 9)),
        "{}/photo.png: cannot be read as an image (cannot identify image file).",
    ),
    Case(
        "floats",
        "predict",
        predict(encoded(np.full([40, 40], np.nan, "float32"), "TIFF")),
        "{}/photo.png: has NaN or infinite values; fill them.",
    ),
    Case(
        "a folder named like an image",
        "predict",
        folder_named_like_an_image,
        "{}/photos/holiday.jpg: contains no image",
    ),
    Case(
        "a symbolic link to itself",
        "predict",
        link_to_itself,
        "{}/loop.jpg: no such image, folder or list of images.",
    ),
    Case("a pipe", "predict", pipe, "{}/pipe.jpg: no such image, folder or list of images."),
    Case(
        "a folder without images",
        "predict",
        lambda p: p.predict(p.write("a/b.txt").parent),
        "{}/a: contains no image",
    ),
    Case(
        "an empty list", "predict", predict(b"\n\n", "list.txt"), "{}/list.txt: contains no image"
    ),
    Case(
        "a list of missing files",
        "predict",
        predict(b"a.jpg\nb.jpg\n", "list.txt"),
        (
            "{}/a.jpg: cannot be read as an image (not a file).",
            "{}/b.jpg: cannot be read as an image (not a file).",
        ),
    ),
    Case(
        "a binary file list",
        "predict",
        predict(bytes(range(256)), "list.dat"),
        "{}/list.dat: is neither an image nor a text file of paths.",
    ),
    Case(
        "a null character in a file list",
        "predict",
        predict(b"a.jpg\nb\0.jpg\n", "list.txt"),
        "{}/list.txt: is neither an image nor a text file of paths.",
    ),
    Case(
        "a long name in a file list",
        "predict",
        predict(b"a" * 5000 + b"\n", "list.txt"),
        "{}/aaa…: cannot be read as an image (File name too long)",
    ),
    Case(
        "a pattern without matches",
        "predict",
        lambda p: p.predict(f"{p.root}/*.jpg"),
        "{}/*.jpg: contains no image",
    ),
    Case(
        "an invalid video",
        "predict",
        predict(b"\0" * 99, "film.mp4"),
        "{}/film.mp4: cannot be read as a video.",
    ),
    Case("empty, train", "train", train(b""), "{}/images/0.png: cannot be read as an image"),
    Case("text, train", "train", train(b"hello"), "{}/images/0.png: cannot be read as an image"),
    Case(
        "a truncated PNG, train",
        "train",
        train(PNG[: len(PNG) // 2]),
        "{}/images/0.png: cannot be read as an image",
    ),
    Case(
        "a truncated JPEG, check_dataset",
        "check_dataset",
        cut_in_the_data,
        "{}/images/0.png: is cut off",
    ),
    Case(
        "a decompression bomb, train",
        "train",
        train(declared(60000, 60000)),
        "{}/images/0.png: cannot be read as an image",
    ),
    Case(
        "a pipe, train",
        "train",
        pipe_in_the_data,
        "train_dataset: {}/images/0.png does not exist as a file",
    ),
    Case(
        "a pipe, check_dataset",
        "check_dataset",
        lambda p: pipe_in_the_data(p)[2:],
        "{}/images/0.png: does not exist, or is not a file.",
    ),
]


@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)


PICTURE = Image.fromarray(COLORS)
VALID = {
    "gray": ("photo.png", encoded(PICTURE.convert("L"), "PNG")),
    "16 bits": ("photo.png", encoded(COLORS[:, :, 0].astype("uint16") * 257, "PNG")),
    "CMYK": ("photo.jpg", encoded(PICTURE.convert("CMYK"), "JPEG")),
    "palette": ("photo.png", encoded(PICTURE.convert("P"), "PNG")),
    "alpha": ("photo.png", encoded(PICTURE.convert("RGBA"), "PNG")),
    "gray and alpha": ("photo.png", encoded(PICTURE.convert("LA"), "PNG")),
    "black and white": ("photo.png", encoded(PICTURE.convert("1"), "PNG")),
    "a PNG with another suffix": ("photo.jpg", PNG),
    "animated": ("photo.gif", encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE])),
    "a pixel": ("photo.png", encoded(COLORS[:1, :1], "PNG")),
    "a line": ("photo.png", encoded(np.resize(COLORS, [1, 5000, 3]), "PNG")),
    "a long line": ("photo.png", encoded(np.resize(COLORS, [1, 20000, 3]), "PNG")),
    "a column": ("photo.png", encoded(np.resize(COLORS, [5000, 1, 3]), "PNG")),
    "a name with spaces": ("ein schönes Bild.png", PNG),
}


SLOW = {"a long line": pytest.mark.slow}


@pytest.mark.parametrize(
    "name, data",
    [pytest.param(*value, id=key, marks=SLOW.get(key, ())) for key, value in VALID.items()],
)
def test_valid(name, data, workspace, tools):
    photo = workspace.write(name, data)
    succeeds("predict", workspace.predict(photo), tools)
    pictures = list(workspace.out.rglob("*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        assert Image.open(picture).size == Image.open(photo).size


def test_unreadable_images_among_others(workspace, tools):
    """The others are segmented, the unreadable ones are named, and the exit code is 2."""
    for name, data in (("a.png", PNG), ("b.png", b""), ("c/d.png", PNG), ("e.jpg", JPEG[:300])):
        workspace.write(f"photos/{name}", data)
    (workspace.root / "photos/loop.png").symlink_to("loop.png")
    (workspace.root / "photos/f.png").mkdir()
    result = tools("predict", workspace.predict(workspace.root / "photos"))
    assert result.code == 2 and "2 of 4 files" in result.err and "Traceback" not in result.err
    assert "photos/b.png" in result.out and "photos/e.jpg" in result.out
    found = {
        path.relative_to(workspace.out / "label_map")
        for path in workspace.out.rglob("label_map/**/*.png")
    }
    assert set(map(str, found)) == {"a.png", "c/d.png"}


def test_a_list_with_missing_files(workspace, tools):
    workspace.write("a.png", PNG)
    result = tools(
        "predict", workspace.predict(workspace.write("list.txt", b"a.png\r\n\r\nabsent.png\r\n"))
    )
    assert result.code == 2 and "absent.png" in result.out and "1 of 2" in result.err
    assert len(list(workspace.out.rglob("*.png"))) == 3


@pytest.mark.parametrize("name", ["a pixel", "a line"])
def test_a_small_image_is_evaluated(name, workspace, tools):
    data = VALID[name][1]
    workspace.image().write_bytes(data)
    width, height = Image.open(io.BytesIO(data)).size
    Image.fromarray(np.zeros([height, width], "uint8")).save(workspace.label())
    model = ["--model_path", workspace.root / "run/best_model"]
    succeeds("val", [*workspace.with_opts(), *model], tools)
