"""Prediction of files: folders, patterns, lists, videos; errors do not stop the others."""

import resource

import cv2
import numpy as np
import pytest
from PIL import Image
from small_models import save, small_model

from paddleseg_segformer import SegFormer
from paddleseg_segformer.deploy import export
from paddleseg_segformer.errors import InputError, RunError
from paddleseg_segformer.inference import Predictor, predict
from paddleseg_segformer.inference.predict_files import find_images


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A checkpoint, and images in two folders; two differ only in their extensions."""
    folder = tmp_path_factory.mktemp("files")
    save(small_model(), folder / "model.pdparams")
    rng = np.random.default_rng(0)
    for name in ("a.png", "a.jpg", "b.png", "deep/c.png"):
        path = folder / "photos" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        image = rng.integers(0, 255, [4, 6, 3]).astype("uint8")
        cv2.imwrite(str(path), cv2.resize(image, (96, 64)))
    return folder


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


def test_an_unsupported_size_does_not_stop_the_others(folder, tmp_path):
    pytest.importorskip("paddle2onnx")
    weights = folder / "model.pdparams"
    export(weights, tmp_path, folder / "photos/b.png", format="onnx")
    photos = tmp_path / "photos"
    photos.mkdir()
    cv2.imwrite(str(photos / "tiny.png"), np.zeros([3, 3, 3], "uint8"))
    (photos / "whole.png").write_bytes((folder / "photos/b.png").read_bytes())
    with pytest.raises(InputError, match=r"--probabilities: .* --output_op none"):
        predict(tmp_path / "model.onnx", photos, tmp_path / "out", probabilities=True)
    count, problems = predict(tmp_path / "model.onnx", photos, tmp_path / "out")
    assert count == 1 and "tiny.png: The graph does not support images of 3x3" in problems[0]
    assert (tmp_path / "out/label_map/whole.png").is_file()


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
    for absent in (f"{folder}/*.jpeg", folder / "absent.png", tmp_path / "list.txt/x"):
        with pytest.raises(InputError):
            find_images(absent)


def write_video(path, frames):
    size = frames[0].shape[1::-1]
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"mp4v"), 10, size)
    for frame in frames:
        writer.write(frame)
    writer.release()


def test_a_video(folder, tmp_path):
    """The same number of frames, each the overlay of its prediction, up to compression loss."""
    path = tmp_path / "video.mp4"
    frames = [np.full([64, 96, 3], 40 * i, "uint8") for i in range(1, 6)]
    write_video(path, frames)
    count, problems = predict(folder / "model.pdparams", path, tmp_path / "out", device="cpu")
    assert (count, problems) == (1, [])
    assert written(tmp_path / "out") == {
        "added_prediction/video.mp4",
        "pseudo_color_prediction/video.mp4",
    }
    capture = cv2.VideoCapture(str(tmp_path / "out/added_prediction/video.mp4"))
    found = [capture.read()[1] for _ in frames]
    assert not capture.read()[0]
    predictor = Predictor(folder / "model.pdparams", device="cpu")
    for frame, overlay in zip(frames, found):
        expected = np.asarray(predictor(frame).overlay())[:, :, ::-1].astype(int)
        assert np.abs(overlay - expected).mean() < 12
    (tmp_path / "text.mp4").write_text("no video")
    count, problems = predict(folder / "model.pdparams", tmp_path / "text.mp4", tmp_path / "out2")
    assert count == 0 and "text.mp4: cannot be read as a video" in problems[0]


@pytest.fixture
def repeated(folder, tmp_path):
    """A function that segments a video again, and the two output files of an earlier call."""
    rng = np.random.default_rng(0)
    write_video(tmp_path / "v.mp4", list(rng.integers(0, 255, [20, 64, 96, 3], dtype="uint8")))
    kinds = ("added_prediction", "pseudo_color_prediction")
    earlier = [tmp_path / f"out/{kind}/v.mp4" for kind in kinds]
    for path in earlier:
        path.parent.mkdir(parents=True)
        path.write_text("whole")
    options = {"device": "cpu", "image_path": tmp_path / "v.mp4", "save_dir": tmp_path / "out"}
    return lambda: predict(folder / "model.pdparams", **options), earlier


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
