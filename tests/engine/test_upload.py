"""Batches for a GPU: the host's values to the last bit, uploaded before they are needed.

A CPU stands in for the GPU; see ``gpu``.
"""

import time
import weakref

import cv2
import numpy as np
import paddle
import pytest
from paddleseg import datasets
from training_runs import assert_same_weights, run, tiny_config

from paddleseg_segformer import Dataset, Normalize
from paddleseg_segformer.data.band_transforms import Padding
from paddleseg_segformer.data.transforms import (
    PhotometricDistortion,
    RandomCategoryCrop,
    ResizeToFit,
)
from paddleseg_segformer.engine import dataloader, train_step, trainer, upload
from paddleseg_segformer.engine.dataloader import BatchReader, TrainBatches, TrainSampler
from paddleseg_segformer.engine.metric_writer import read_lines
from paddleseg_segformer.engine.upload import defer_normalize

SIZE, COUNT = 40, 6
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


@pytest.fixture
def gpu(monkeypatch):
    """Take the branches for GPUs, whose memory is copies on the CPU."""

    def copy(tensor, blocking):
        assert not blocking
        return tensor.clone()

    for module in (upload, dataloader, trainer):
        if hasattr(module, "on_gpu"):
            monkeypatch.setattr(module, "on_gpu", lambda: True)
    monkeypatch.setattr(paddle, "CUDAPinnedPlace", paddle.CPUPlace)
    monkeypatch.setattr(paddle.Tensor, "cuda", copy, raising=False)


def write(folder, images):
    """A data set's list of files; the images are smaller than the crops, or larger."""
    lines = []
    for i, image in enumerate(images):
        suffix = "png" if image.dtype.kind == "u" else "tiff"
        cv2.imwrite(str(folder / f"{i}.{suffix}"), image)
        label = np.random.default_rng(i).integers(0, 3, image.shape[:2]).astype("uint8")
        cv2.imwrite(str(folder / f"{i}_label.png"), label)
        lines.append(f"{i}.{suffix} {i}_label.png\n")
    (folder / "train.txt").write_text("".join(lines))
    return {"dataset_root": str(folder), "train_path": str(folder / "train.txt")}


def draw(dtype="uint8", maximum=255, bands=3):
    rng, sizes = np.random.default_rng(0), [(SIZE, 70), (30, 30), (60, 25), (45, 45)] * 2
    shapes = [[*size, bands] if bands > 1 else size for size in sizes[:COUNT]]
    return [rng.uniform(0, maximum + 1, shape).astype(dtype) for shape in shapes]


def paper(mean=MEAN, std=STD, **distortion):
    """The paper's transforms."""
    return [
        ResizeToFit([80, SIZE], ratio_range=[0.5, 2.0]),
        RandomCategoryCrop([SIZE, SIZE]),
        PhotometricDistortion(**distortion),
        Normalize(mean, std),
        Padding([SIZE, SIZE], im_padding_value=0),
    ]


def batches(read):
    return list(TrainBatches(read, TrainSampler(COUNT, 2, 1, 0, 9, 0), 0))


def assert_same_batches(dataset, expected_dtype):
    """Those of a GPU and of a CPU; ``expected_dtype`` is that of the images on their way."""
    deferred, normalize = defer_normalize(dataset)
    reader = BatchReader(deferred, 0, False, normalize)
    found, expected = batches(reader), batches(BatchReader(dataset, 0, False))
    assert all(batch.arrays.keys() == {"img", "label"} for batch in found)
    for actual, batch in zip(found, expected):
        assert actual.files == batch.files and actual.bad_images == batch.bad_images
        for name, array in batch.arrays.items():
            assert actual.arrays[name].dtype == array.dtype
            assert actual.arrays[name].numpy().tobytes() == array.numpy().tobytes(), name
    sent = [reader(numbered).arrays for numbered in TrainSampler(COUNT, 2, 1, 0, 9, 0)]
    assert {str(arrays["img"].dtype) for arrays in sent} == expected_dtype
    assert {str(arrays["label"].dtype) for arrays in sent} == {"uint8"}
    return expected


def test_the_papers_batches(gpu, tmp_path):
    dataset = Dataset("train", transforms=paper(), num_classes=3, **write(tmp_path, draw()))
    found = assert_same_batches(dataset, {"uint8"})
    labels = np.stack([batch.arrays["label"].numpy() for batch in found])
    padded = (labels == 255).any(axis=(2, 3))
    assert padded.any() and not padded.all()


@pytest.mark.parametrize("bands", [1, 4])
def test_other_numbers_of_bands(bands, gpu, tmp_path):
    transforms = paper([0.5], [0.3], saturation=None, hue=None)
    files = write(tmp_path, draw(bands=bands))
    dataset = Dataset("train", transforms=transforms, num_classes=3, img_channels=bands, **files)
    assert_same_batches(dataset, {"uint8"})


def test_images_of_16_bits_and_of_floats_are_normalized_before(gpu, tmp_path):
    """Also where a batch has 8-bit ones, too."""
    pytest.importorskip("rasterio", reason="rasterio is not installed")
    images = draw()
    images[1], images[4] = draw("uint16", 65535)[1], draw("float32", 255)[4]
    transforms = paper(saturation=None, hue=None)
    dataset = Dataset("train", transforms=transforms, num_classes=3, **write(tmp_path, images))
    assert_same_batches(dataset, {"uint8", "float32"})


def test_images_that_are_not_finite(gpu, tmp_path):
    class NotFinite(Dataset):
        def _read(self, index):
            image, label = super()._read(index)
            return image * np.float32(np.nan if index == 2 else 1), label

    transforms = [Normalize(MEAN, STD), Padding([70, 60], im_padding_value=0)]
    dataset = NotFinite("train", transforms=transforms, num_classes=3, **write(tmp_path, draw()))
    found = assert_same_batches(dataset, {"uint8", "float32"})
    assert any(batch.bad_images for batch in found)


def test_a_data_set_of_paddleseg(gpu, tmp_path):
    """Its images are float32 from the start."""
    transforms = [ResizeToFit([SIZE, SIZE]), Padding([SIZE, SIZE], 0), Normalize(MEAN, STD)]
    files = write(tmp_path, draw())
    dataset = datasets.Dataset("train", num_classes=3, transforms=transforms, **files)
    assert_same_batches(dataset, {"uint8"})


class OwnReading(Dataset):
    def __getitem__(self, index):
        return super().__getitem__(index)


class OwnNormalize(Normalize):
    pass


@pytest.mark.parametrize(
    "kind, transforms",
    [
        (Dataset, []),
        (Dataset, [Padding([SIZE, SIZE], 0)]),
        (Dataset, [Normalize(), ResizeToFit([SIZE, SIZE])]),
        (Dataset, [Normalize(), Padding([SIZE, SIZE])]),  # by 127.5
        (Dataset, [Normalize(), *[Padding([SIZE, SIZE], 0)] * 2]),
        (Dataset, [Normalize([100, 100, 100], [1, 1, 1])]),
        (Dataset, [Normalize([0.1, 0.2, 0.3, 0.4], [1])]),  # for four bands
        (Dataset, [OwnNormalize()]),
        (OwnReading, [Normalize()]),
    ],
)
def test_other_transforms_and_data_sets_stay_as_they_are(kind, transforms, tmp_path):
    dataset = kind("train", transforms=transforms, num_classes=3, **write(tmp_path, draw()))
    assert defer_normalize(dataset) == (dataset, None)
    assert dataset.transforms.transforms == transforms


def test_the_data_set_itself_is_not_changed(tmp_path):
    transforms = paper()
    dataset = Dataset("train", transforms=transforms, num_classes=3, **write(tmp_path, draw()))
    deferred, _ = defer_normalize(dataset)
    assert dataset.transforms.transforms == transforms
    assert deferred.transforms.transforms == [x for x in transforms if type(x) is not Normalize]


@pytest.fixture
def patient(monkeypatch):
    """Make the test for a batch that has been read wait for it."""

    def done(future):
        dataloader.futures.wait([future])
        return True

    monkeypatch.setattr(dataloader.futures.Future, "done", done)


@pytest.mark.integration
@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_step_is_uploaded_before_the_last_ones_losses_are_read(
    accumulate, gpu, patient, scenes, tmp_path, monkeypatch
):
    """Its micro-batches in order; pinned memory is kept until then."""
    events, pinned = [], []

    def note(module, name, event, after=lambda result: None):
        function = getattr(module, name)

        def noting(*arguments):
            events.append(event)
            result = function(*arguments)
            after(result)
            return result

        monkeypatch.setattr(module, name, noting)

    def keep(result):
        pinned.append([weakref.ref(tensor) for tensor in result[1].values()])

    def check_kept(result):
        if events[-2] != "start":  # else it reads the number of labels
            alive = [all(ref() is not None for ref in refs) for refs in pinned]
            assert all(alive[-accumulate:])

    note(train_step.TrainStep, "_accumulate", "start")
    note(dataloader, "upload", "upload", keep)
    note(train_step, "gradient_norm", "queued")
    note(train_step, "_to_host", "read", check_kept)
    config = tiny_config(scenes, iters=3)
    run(config, tmp_path, grad_accum_steps=accumulate, num_workers=1, use_ema=False)
    uploads = ["upload"] * accumulate
    step = ["start", *["read"] * (accumulate > 1), "queued"]
    expected = [*uploads, *step, *uploads, "read", *step, *uploads, "read", *step, "read"]
    assert events == expected


@pytest.mark.integration
def test_a_run_on_a_gpu_is_that_on_a_cpu(scenes, tmp_path, request):
    """Also when resumed, with evaluations between the steps."""
    config = tiny_config(scenes, iters=4)
    options = {"num_workers": 2, "do_eval": True}
    expected = run(config, tmp_path / "cpu", **options)
    for fixture in ("gpu", "patient"):
        request.getfixturevalue(fixture)
    found = [run(config, tmp_path / "gpu", **options)]
    resumed = {"resume_model": str(tmp_path / "gpu/iter_2"), **options}
    found.append(run(config, tmp_path / "resumed", **resumed))
    for folder in found:
        for name in ("model.pdparams", "ema_model.pdparams"):
            assert_same_weights(folder / name, expected / name)
    losses = [
        {line["iteration"]: line["loss"] for line in read_lines(tmp_path / name) if "loss" in line}
        for name in ("cpu", "gpu", "resumed")
    ]
    assert len(losses[0]) == 4 and losses[1] == losses[0]
    assert losses[2] == {i: loss for i, loss in losses[0].items() if i > 2}


class Slow:
    """A data set whose second sample takes a while, and whose third one is broken."""

    file_list = [[f"{index}.png", f"{index}.png"] for index in range(4)]  # noqa: RUF012

    def __len__(self):
        return 4

    def __getitem__(self, index):
        time.sleep(index == 1)
        if index == 2:
            raise ValueError("not an image")
        return {"img": np.full([1, 2, 2], index, "float32")}


@pytest.mark.integration
def test_prefetching_neither_waits_nor_fails(gpu):
    sampler = TrainSampler(4, 1, 1, 0, 4, 0, shuffle=False)
    found = TrainBatches(BatchReader(Slow(), 0, False), sampler, 1)
    first, start = next(found), time.monotonic()
    found.prefetch()
    assert time.monotonic() - start < 0.5
    second = next(found)
    assert [batch.arrays["img"].max().item() for batch in (first, second)] == [0, 1]
    time.sleep(0.3)
    found.prefetch()
    with pytest.raises(dataloader.InputError, match=r"2\.png: cannot be read"):
        next(found)
