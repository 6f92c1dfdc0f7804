"""Prediction of files: folders, patterns, lists, videos; errors do not stop the others."""

import resource
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from PIL import Image
from small_models import save, smallest_model

from paddleseg_segformer import SegFormer
from paddleseg_segformer.data.image_io import ANY_TYPE
from paddleseg_segformer.errors import InputError, RunError
from paddleseg_segformer.inference import Prediction, Predictor, predict, predict_files
from paddleseg_segformer.inference.predict_files import find_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and images in two folders; two differ only in their extensions."""
    folder = tmp_path_factory.mktemp("files")
    save(smallest_model(), folder / "model.pdparams")
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "b.png", "deep/c.png"):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 255, [4, 6, 3]).astype("uint8")
        cv2.imwrite(str(path), cv2.resize(image, (96, 64)))
    return folder


class ByColor:
    """A predictor of the greatest channel of each pixel, in colors that differ in each channel."""

    classes = ("red", "green", "blue")
    palette = np.array([[250, 130, 0], [0, 60, 190], [180, 0, 90]], "uint8")

    def __init__(self, model_path, **options):
        pass

    def __call__(self, image):
        labels = image.argmax(axis=2).astype("uint8")
        return Prediction(labels, image, self.classes, self.palette)

    channels, check_type = 3, ANY_TYPE
    segmenter = SimpleNamespace(max_images=8)

    def segment_decoded(self, images, probabilities=False):
        return [self(image) for image in images]


@pytest.fixture
def by_color(monkeypatch):
    monkeypatch.setattr(predict_files, "Predictor", ByColor)


# Labels, and an image whose red, green or blue is the greatest channel, as they say.
LABELS = np.array([[0, 1], [2, 0], [1, 2]], "uint8").repeat(32, 0).repeat(48, 1)
COLORS = np.array([[220, 60, 30], [50, 200, 20], [10, 40, 210]], "uint8")[LABELS]


def test_all_kinds_of_images_are_segmented_as_displayed(by_color, tmp_path):
    """With alpha, with a palette, rotated by EXIF; gray pixels have the first class."""
    photos, exif = tmp_path / "photos", Image.Exif()
    photos.mkdir()
    exif[274] = 6  # rotate by 90 degrees clockwise
    image, alpha = Image.fromarray(COLORS), Image.fromarray(LABELS * 100)
    image.save(photos / "rgb.png")
    Image.merge("RGBA", [*image.split(), alpha]).save(photos / "alpha.png")
    image.quantize(3).save(photos / "palette.png")
    image.convert("L").save(photos / "gray.png")
    image.save(photos / "rotated.jpg", exif=exif, quality=95)
    assert predict("model", photos, tmp_path / "out") == (5, [])
    expected = dict.fromkeys(("rgb", "alpha", "palette"), LABELS)
    expected |= {"gray": 0 * LABELS, "rotated": np.rot90(LABELS, -1)}
    for name, labels in expected.items():
        found = np.asarray(Image.open(tmp_path / f"out/label_map/{name}.png"))
        assert found.shape == labels.shape and (found == labels).mean() > 0.97, name  # JPEG's loss
        colors = np.asarray(Image.open(tmp_path / f"out/pseudo_color_prediction/{name}.png"))
        np.testing.assert_array_equal(colors, ByColor.palette[found])


def written(root):
    return {str(path.relative_to(root)) for path in root.rglob("*") if path.is_file()}


def test_a_folder_keeps_names_and_subfolders(folder, tmp_path):
    count, problems = predict(folder / "model.pdparams", folder / "photos", tmp_path, device="cpu")
    assert (count, problems) == (4, [])
    names = ("a.png.png", "a.jpg.png", "b.png", "deep/c.png")
    kinds = ("added_prediction", "pseudo_color_prediction", "label_map")
    assert written(tmp_path) == {f"{kind}/{name}" for kind in kinds for name in names}
    predictor = Predictor(folder / "model.pdparams", device="cpu")
    for name, source in (("b.png", "b.png"), ("a.jpg.png", "a.jpg")):
        labels = np.asarray(Image.open(tmp_path / "label_map" / name))
        expected = predictor(folder / "photos" / source)
        np.testing.assert_array_equal(labels, expected.label_map)
        overlay = np.asarray(Image.open(tmp_path / "added_prediction" / name))
        np.testing.assert_array_equal(overlay, expected.overlay())


def test_probabilities(folder, tmp_path, monkeypatch):
    """The model runs once per image."""
    decode, runs = SegFormer.decode, []
    monkeypatch.setattr(SegFormer, "decode", lambda *a: runs.append(a) or decode(*a))
    image = folder / "photos/b.png"
    predict(folder / "model.pdparams", image, tmp_path, probabilities=True, device="cpu")
    assert len(runs) == 1
    found = np.load(tmp_path / "probabilities/b.npz")["probabilities"]
    labels = np.asarray(Image.open(tmp_path / "label_map/b.png"))
    assert found.shape == (5, 64, 96) and (found.argmax(axis=0) == labels).mean() > 0.99


def test_a_broken_file_does_not_stop_the_others(folder, tmp_path):
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / "broken.jpg").write_bytes(b"\xff\xd8 cut short")
    (photos / "whole.png").write_bytes((folder / "photos/b.png").read_bytes())
    out = tmp_path / "out"
    count, problems = predict(folder / "model.pdparams", photos, out, device="cpu")
    assert count == 1 and len(problems) == 1 and "broken.jpg: cannot be read" in problems[0]
    assert len(written(out)) == 3


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_an_unsupported_size_does_not_stop_the_others(
    threads, by_color, tmp_path, monkeypatch, use_threads
):
    """Nor the others of those that are segmented together."""
    use_threads(threads)

    def segment_decoded(self, images, probabilities):
        if any(image.shape == (3, 3, 3) for image in images):
            raise InputError("The graph does not support images of 3x3.")
        return [self(image) for image in images]

    monkeypatch.setattr(ByColor, "segment_decoded", segment_decoded)
    for name, image in (("a", COLORS), ("b", COLORS[:3, :3]), ("c", COLORS[:, ::-1])):
        Image.fromarray(image).save(tmp_path / f"{name}.png")
    count, problems = predict("model", tmp_path, tmp_path / "out")
    assert count == 2
    assert problems == [f"{tmp_path}/b.png: The graph does not support images of 3x3."]
    for name, labels in (("a", LABELS), ("c", LABELS[:, ::-1])):
        found = np.asarray(Image.open(tmp_path / f"out/label_map/{name}.png"))
        np.testing.assert_array_equal(found, labels)


def test_a_folder_on_several_threads(folder, tmp_path, use_threads):
    """Its outputs, and the order of its errors, are those of one image at a time."""
    photos = tmp_path / "photos"
    photos.mkdir()
    for i in range(7):
        image = np.asarray(Image.open(folder / "photos/b.png"))
        Image.fromarray(np.roll(image, 11 * i, axis=1)[: 64 - 3 * i]).save(photos / f"{i}.png")
    for i in (1, 2, 5):
        (photos / f"{i}.jpg").write_bytes(b"\xff\xd8 cut short")
    outputs, errors = [], []
    for threads in (1, 3):
        use_threads(threads)
        out = tmp_path / f"out{threads}"
        count, problems = predict(folder / "model.pdparams", photos, out, device="cpu")
        assert count == 7
        outputs.append({name: (out / name).read_bytes() for name in written(out)})
        errors.append([problem.partition(": ")[0] for problem in problems])
    assert len(outputs[0]) == 21 and outputs[0] == outputs[1]
    assert errors == [[str(photos / f"{i}.jpg") for i in (1, 2, 5)]] * 2


@pytest.mark.parametrize("save_dir", ["result", "."])
def test_outputs_of_an_earlier_call_are_not_segmented(save_dir, folder, tmp_path):
    (tmp_path / "b.png").write_bytes((folder / "photos/b.png").read_bytes())
    save_dir = tmp_path / save_dir
    for _ in range(2):
        assert predict(folder / "model.pdparams", tmp_path, save_dir, device="cpu") == (1, [])
    output = save_dir / "label_map/b.png"
    for path in (output, output.parent):
        with pytest.raises(InputError, match=r"contains only outputs of predict in --save_dir"):
            predict(folder / "model.pdparams", path, save_dir, device="cpu")


def test_outputs_do_not_overwrite_each_other(folder, tmp_path):
    for name in ("a.png", "a.jpg", "a.png.webp", "deep/a.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((folder / "photos/b.png").read_bytes())
    predict(folder / "model.pdparams", tmp_path, tmp_path / "out", device="cpu")
    assert len(list((tmp_path / "out/label_map").rglob("*.png"))) == 4
    (tmp_path / "deep/list.txt").write_text("a.png\n../a.png\n")
    with pytest.raises(InputError, match="would have the same output files"):
        predict(folder / "model.pdparams", tmp_path / "deep/list.txt", tmp_path / "o", device="cpu")


def test_an_unwritable_save_dir_is_rejected_first(folder, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(InputError, match=r"--save_dir .*file: cannot be written"):
        predict(folder / "model.pdparams", folder / "photos", tmp_path / "file", device="cpu")


def test_patterns_and_lists(folder, tmp_path):
    root, names = find_images(f"{folder}/photos/*.png")
    assert root == folder / "photos" and sorted(map(str, names)) == ["a.png", "b.png"]
    (tmp_path / "list.txt").write_text("\ufeffone.jpg label.png\n\ntwo.jpg\n")
    root, names = find_images(tmp_path / "list.txt")
    assert root == tmp_path and list(map(str, names)) == ["one.jpg", "two.jpg"]
    (tmp_path / "my photo.jpg").touch()
    (tmp_path / "list.txt").write_text("my photo.jpg\n")
    assert list(map(str, find_images(tmp_path / "list.txt")[1])) == ["my photo.jpg"]
    (tmp_path / "deep").mkdir()
    for name in ("A.JPG", "deep/B.Mp4"):
        (tmp_path / name).touch()
        assert list(map(str, find_images(tmp_path / name)[1])) == [name.rpartition("/")[2]]
    root, names = find_images(tmp_path)
    assert root == tmp_path
    assert list(map(str, names)) == ["A.JPG", "deep/B.Mp4", "my photo.jpg"]  # not list.txt
    for absent in (f"{folder}/*.jpeg", folder / "absent.png", tmp_path / "list.txt/x"):
        with pytest.raises(InputError):
            find_images(absent)


OUTPUTS = ("added_prediction/video.mp4", "pseudo_color_prediction/video.mp4")


def write_video(path, frames):
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, size)
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_a_video(by_color, tmp_path):
    """Colored frames: their classes, colors and overlays, up to the loss of the compression."""
    path = tmp_path / "video.mp4"
    images = [np.roll(COLORS, 32 * i, axis=0) for i in range(5)]
    write_video(path, [image[:, :, ::-1] for image in images])
    assert predict("model", path, tmp_path / "out") == (1, [])
    assert written(tmp_path / "out") == set(OUTPUTS)
    captures = [cv2.VideoCapture(str(tmp_path / "out" / name)) for name in OUTPUTS]
    assert [capture.get(cv2.CAP_PROP_FPS) for capture in captures] == [10, 10]
    for i, image in enumerate(images):
        colors = ByColor.palette[np.roll(LABELS, 32 * i, axis=0)].astype(int)
        for capture, expected in zip(captures, ((image + colors) / 2, colors)):
            found = capture.read()[1][:, :, ::-1]
            assert np.abs(found - expected).mean() < 12
    assert not any(capture.read()[0] for capture in captures)
    (tmp_path / "text.mp4").write_text("no video")
    count, problems = predict("model", tmp_path / "text.mp4", tmp_path / "out2")
    assert count == 0 and "text.mp4: cannot be read as a video" in problems[0]


@pytest.mark.parametrize("threads", [1, 2])
def test_a_video_among_images(threads, by_color, tmp_path, use_threads):
    use_threads(threads)
    (tmp_path / "in").mkdir()
    for name in "acd":
        Image.fromarray(COLORS).save(tmp_path / f"in/{name}.png")
    write_video(tmp_path / "in/b.mp4", [COLORS[:, :, ::-1]])
    assert predict("model", tmp_path / "in", tmp_path / "out") == (4, [])
    kinds = ("added_prediction", "pseudo_color_prediction")
    expected = {f"{kind}/{x}.png" for kind in (*kinds, "label_map") for x in "acd"}
    assert written(tmp_path / "out") == expected | {f"{kind}/b.mp4" for kind in kinds}


@pytest.fixture
def repeated(by_color, tmp_path):
    """A function that segments a video again, and the two output files of an earlier call."""
    rng = np.random.default_rng(0)
    write_video(tmp_path / "v.mp4", list(rng.integers(0, 255, [20, 64, 96, 3], dtype="uint8")))
    kinds = ("added_prediction", "pseudo_color_prediction")
    earlier = [tmp_path / f"out/{kind}/v.mp4" for kind in kinds]
    for path in earlier:
        path.parent.mkdir(parents=True)
        path.write_text("whole")
    return lambda: predict("model", tmp_path / "v.mp4", tmp_path / "out"), earlier


def test_a_video_on_a_full_disk(repeated, tmp_path):
    """Simulated by a limit of the file size."""
    segment, earlier = repeated
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
    try:
        with pytest.raises(RunError, match=r"--save_dir: .*v\.mp4 cannot be written"):
            segment()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert [path.read_text() for path in earlier] == ["whole"] * 2
    assert len(written(tmp_path / "out")) == 2


def test_an_interrupted_video_keeps_the_earlier_one(repeated, tmp_path, monkeypatch):
    segment, earlier = repeated
    calls = iter(range(3))  # one call per frame

    def fail(prediction):
        if next(calls) == 2:
            assert [path.read_text() for path in earlier] == ["whole"] * 2
            raise KeyboardInterrupt
        return prediction.image

    monkeypatch.setattr("paddleseg_segformer.inference.predictor.Prediction.overlay", fail)
    with pytest.raises(KeyboardInterrupt):
        segment()
    assert [path.read_text() for path in earlier] == ["whole"] * 2
    assert len(written(tmp_path / "out")) == 2
