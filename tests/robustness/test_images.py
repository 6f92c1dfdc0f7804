"""Images of every kind: what can be read is segmented at its size, what cannot is named."""

import io
import os
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from .cases import SIZE, Case, check, table, works

COLORS = np.random.default_rng(0).integers(0, 255, [40, 56, 3]).astype("uint8")


def encoded(array, ending, **options):
    picture = array if isinstance(array, Image.Image) else Image.fromarray(array)
    file = io.BytesIO()
    picture.save(file, ending, **options)
    return file.getvalue()


def declared(width, height):
    """A PNG that claims a size, and has next to nothing in it."""

    def chunk(kind, data):
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = zlib.compress(b"\0" * 9999)
    chunks = chunk(b"IHDR", header) + chunk(b"IDAT", data) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + chunks


PNG, JPEG = encoded(COLORS, "PNG"), encoded(COLORS, "JPEG", quality=95)


def one(data, name="photo.png"):
    """``predict`` on a file of these bytes."""
    return lambda place: place.predict(place.write(name, data))


def train(data):
    """``train`` on data of which one image has these bytes."""

    def make(place):
        place.image().write_bytes(data)
        return place.train()

    return make


def folder_named_as_an_image(place):
    place.write("photos/readme.txt")
    (place.root / "photos/holiday.jpg").mkdir()
    return place.predict(place.root / "photos/holiday.jpg")


def link_to_itself(place):
    (place.root / "loop.jpg").symlink_to(place.root / "loop.jpg")
    return place.predict(place.root / "loop.jpg")


def pipe(place):
    os.mkfifo(place.root / "pipe.jpg")
    return place.predict(place.root / "pipe.jpg")


def cut_in_the_data(place):
    """Training takes it, as PaddleSeg's does."""
    jpeg = encoded(np.resize(COLORS, [SIZE, SIZE, 3]), "JPEG")
    train(jpeg[: len(jpeg) // 2])(place)
    return place.with_opts()


def pipe_in_the_data(place):
    place.image().unlink()
    os.mkfifo(place.image())
    return place.train()


WRONG = [
    Case("missing", "predict", lambda p: p.predict(p.root / "photo.jpg"), "photo.jpg", alone=True),
    Case("empty", "predict", one(b""), "photo.png"),
    Case("text", "predict", one(b"hello", "photo.jpg"), "photo.jpg"),
    Case("a web page", "predict", one(b"<!doctype html><p>404", "photo.jpg"), "photo.jpg"),
    Case("a document", "predict", one(b"%PDF-1.7\n%\xe2\xe3\xcf\xd3", "photo.pdf"), "photo.pdf"),
    *[
        Case(f"PNG cut at {tenth}0%", "predict", one(PNG[: len(PNG) * tenth // 10]), "photo.png")
        for tenth in range(1, 10)
    ],
    *[
        Case(f"JPEG cut at {tenth}0%", "predict", one(JPEG[: len(JPEG) * tenth // 10]), "photo.png")
        for tenth in range(1, 10)
    ],
    Case("a bomb", "predict", one(declared(60000, 60000)), "photo.png"),
    Case("wider than anything", "predict", one(declared(1 << 30, 1)), "photo.png"),
    Case("no size at all", "predict", one(declared(0, 9)), "photo.png"),
    Case("floats", "predict", one(encoded(np.ones([40, 40], "float32"), "TIFF")), "photo.png"),
    Case("a folder named as one", "predict", folder_named_as_an_image, "holiday.jpg"),
    Case("a link to itself", "predict", link_to_itself, "loop.jpg"),
    Case("a pipe", "predict", pipe, "pipe.jpg"),
    Case("a folder without any", "predict", lambda p: p.predict(p.write("a/b.txt").parent), "a: h"),
    Case("an empty list", "predict", one(b"\n\n", "list.txt"), "list.txt"),
    Case("a list of none", "predict", one(b"a.jpg\nb.jpg\n", "list.txt"), ("a.jpg", "b.jpg")),
    Case("a binary list", "predict", one(bytes(range(256)), "list.dat"), "list.dat"),
    Case("a pattern of none", "predict", lambda p: p.predict(f"{p.root}/*.jpg"), "*.jpg"),
    Case("a video that is none", "predict", one(b"\0" * 99, "film.mp4"), "film.mp4"),
    Case("empty, to train on", "train", train(b""), "images/0.png"),
    Case("text, to train on", "train", train(b"hello"), "images/0.png"),
    Case("a PNG cut, to train on", "train", train(PNG[: len(PNG) // 2]), "images/0.png"),
    Case("a JPEG cut, to check", "check_dataset", cut_in_the_data, "images/0.png"),
    Case("a bomb, to train on", "train", train(declared(60000, 60000)), "images/0.png"),
    Case("a pipe, to train on", "train", pipe_in_the_data, "images/0.png"),
    Case("a pipe, to check", "check_dataset", lambda p: pipe_in_the_data(p)[2:], "images/0.png"),
]


@table(WRONG)
def test_wrong(case, place, tools):
    check(case, place, tools)


PICTURE = Image.fromarray(COLORS)
RIGHT = {
    "gray": ("photo.png", encoded(PICTURE.convert("L"), "PNG")),
    "16 bits": ("photo.png", encoded(COLORS[:, :, 0].astype("uint16") * 257, "PNG")),
    "CMYK": ("photo.jpg", encoded(PICTURE.convert("CMYK"), "JPEG")),
    "palette": ("photo.png", encoded(PICTURE.convert("P"), "PNG")),
    "alpha": ("photo.png", encoded(PICTURE.convert("RGBA"), "PNG")),
    "gray and alpha": ("photo.png", encoded(PICTURE.convert("LA"), "PNG")),
    "black and white": ("photo.png", encoded(PICTURE.convert("1"), "PNG")),
    "a PNG by another name": ("photo.jpg", PNG),
    "animated": ("photo.gif", encoded(PICTURE, "GIF", save_all=True, append_images=[PICTURE])),
    "a pixel": ("photo.png", encoded(COLORS[:1, :1], "PNG")),
    "a line": ("photo.png", encoded(np.resize(COLORS, [1, 20000, 3]), "PNG")),
    "a column": ("photo.png", encoded(np.resize(COLORS, [20000, 1, 3]), "PNG")),
    "a name with blanks": ("ein schönes Bild.png", PNG),
}


@pytest.mark.parametrize("name, data", RIGHT.values(), ids=RIGHT)
def test_right(name, data, place, tools):
    photo = place.write(name, data)
    works("predict", place.predict(photo), tools)
    pictures = list(place.out.rglob("*.png"))
    assert len(pictures) == 3
    for picture in pictures:
        assert Image.open(picture).size == Image.open(photo).size


def test_a_broken_one_among_others(place, tools):
    """The others are segmented; the broken ones are named, and the exit code tells."""
    for name, data in (("a.png", PNG), ("b.png", b""), ("c/d.png", PNG), ("e.jpg", JPEG[:300])):
        place.write(f"photos/{name}", data)
    (place.root / "photos/loop.png").symlink_to("loop.png")
    (place.root / "photos/f.png").mkdir()
    done = tools("predict", place.predict(place.root / "photos"))
    assert done.code == 2 and "2 of 4 files" in done.err and "Traceback" not in done.err
    assert "photos/b.png" in done.out and "photos/e.jpg" in done.out
    found = {
        path.relative_to(place.out / "label_map") for path in place.out.rglob("label_map/**/*.png")
    }
    assert set(map(str, found)) == {"a.png", "c/d.png"}


def test_a_list_with_files_that_are_missing(place, tools):
    place.write("a.png", PNG)
    done = tools("predict", place.predict(place.write("list.txt", b"a.png\r\n\r\nabsent.png\r\n")))
    assert done.code == 2 and "absent.png" in done.out and "1 of 2" in done.err
    assert len(list(place.out.rglob("*.png"))) == 3


@pytest.mark.parametrize("name", ["a pixel", "a line"])
def test_a_small_image_exports_and_evaluates(name, place, tools):
    data = RIGHT[name][1]
    place.image().write_bytes(data)
    width, height = Image.open(io.BytesIO(data)).size
    Image.fromarray(np.zeros([height, width], "uint8")).save(place.label())
    model = ["--model_path", place.root / "run/best_model"]
    works("val", [*place.with_opts(), *model], tools)
