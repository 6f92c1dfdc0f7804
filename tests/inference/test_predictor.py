"""``Predictor``: any kind of checkpoint, any kind of image."""

import json

import cv2
import numpy as np
import paddle
import paddle.nn.functional as F
import pytest
from PIL import Image
from served_model import write_model
from shared import SHARED, needs_shared
from small_models import SMALLEST, save, small_model, smallest_model

from paddleseg_segformer import MixVisionTransformer
from paddleseg_segformer.config import load_config
from paddleseg_segformer.data import ADE20K
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.engine import train
from paddleseg_segformer.errors import InputError
from paddleseg_segformer.inference import Predictor
from paddleseg_segformer.inference.visualize import color_map, to_picture

MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])


@pytest.fixture(scope="module")
def image():
    rng = np.random.default_rng(0)
    return cv2.resize(rng.integers(0, 255, [6, 8, 3]).astype("uint8"), (128, 96))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    return save(smallest_model(), tmp_path_factory.mktemp("model") / "model.pdparams")


def expected_labels(model, image, size=None):
    """The argmax of the model's logits, resized to a size ``(H, W)`` if given."""
    x = (image / 255 - MEAN) / STD
    with paddle.no_grad():
        logits = model(paddle.to_tensor(x.transpose(2, 0, 1)[None].astype("float32")))[0]
    if size is not None:
        logits = F.interpolate(logits, size, mode="bilinear")
    return logits.numpy()[0].argmax(axis=0)


def test_architecture_is_inferred_from_weights(checkpoint, image):
    """The same label map for an array, a Pillow image and a file, equal to the model's output."""
    predictor = Predictor(checkpoint, device="cpu")
    prediction = predictor(image)
    expected = expected_labels(smallest_model(), image)
    assert len(np.unique(expected)) > 2
    assert (prediction.label_map == expected).mean() > 0.999
    file = checkpoint.with_name("image.png")
    Image.fromarray(image).save(file)
    for same in (Image.fromarray(image), file, str(file)):
        np.testing.assert_array_equal(predictor(same).label_map, prediction.label_map)
    assert predictor.classes == list("01234")


def test_images_of_a_prediction(checkpoint, image):
    prediction = Predictor(checkpoint, device="cpu")(image)
    colors = prediction.palette[prediction.label_map]
    np.testing.assert_array_equal(np.asarray(prediction.color_map()), colors)
    np.testing.assert_array_equal(np.asarray(prediction.label_image()), prediction.label_map)
    np.testing.assert_array_equal(np.asarray(prediction.label_image().convert("RGB")), colors)
    for opacity, actual in ((0.25, prediction.overlay(0.25)), (0.5, prediction.overlay())):
        blended = (1 - opacity) * image + opacity * colors
        np.testing.assert_allclose(actual, blended, atol=0.5)  # rounded
    shares = prediction.shares()
    assert list(shares.values()) == sorted(shares.values(), reverse=True)
    for index in np.unique(prediction.label_map):
        assert shares[str(index)] == (prediction.label_map == index).mean()


def test_labels_beyond_the_palette_are_black():
    labels = np.array([[0, 1, 2, 255]], "uint8")
    colors = color_map(labels, np.array([[255, 0, 0], [0, 10, 20]], "uint8"))
    np.testing.assert_array_equal(colors[0], [[255, 0, 0], [0, 10, 20], [0, 0, 0], [0, 0, 0]])


@pytest.mark.parametrize("windows", [False, True])
def test_probabilities(windows, checkpoint, image):
    options = {"is_slide": True, "crop_size": (64, 64), "stride": (48, 48)} if windows else {}
    predictor = Predictor(checkpoint, device="cpu", aug_eval=True, scales=[0.5, 1.0], **options)
    prediction, alone = predictor(image, probabilities=True), predictor(image)
    np.testing.assert_array_equal(prediction.label_map, alone.label_map)
    assert prediction.probabilities.shape == (5, 96, 128) and alone.probabilities is None
    np.testing.assert_allclose(prediction.probabilities.astype("float32").sum(axis=0), 1, atol=2e-3)
    best = prediction.probabilities.argmax(axis=0)
    assert (best == prediction.label_map).mean() > 0.99  # all but float16 ties


@pytest.mark.parametrize("dtype", ["float32", "int64", "uint16"])
def test_8_bit_values_in_another_type_are_a_warning(dtype, checkpoint, image, caplog):
    """All but black as a fraction of 65535, and beyond white in floats and large integers."""
    predictor = Predictor(checkpoint, device="cpu")
    caplog.clear()
    predictor(image.astype(dtype))
    first, second = [record.getMessage() for record in caplog.records]
    assert f"a {dtype} array, 0 to 255, are not taken for 8-bit values" in first
    assert f"has {'16-bit' if dtype == 'uint16' else dtype} values, but the training" in second
    caplog.clear()
    for other in (image, image > 99, image.astype("uint16") * 257, image / 255):
        predictor(other)
    assert not caplog.records  # the second one is of the first image only


def test_a_grayscale_array(checkpoint, image):
    predictor = Predictor(checkpoint, device="cpu")
    gray = image[:, :, 0]
    expected = predictor(np.repeat(gray[:, :, None], 3, axis=2)).label_map
    np.testing.assert_array_equal(predictor(gray).label_map, expected)
    for wrong in (image[None], image.astype("complex64"), image[:0]):
        with pytest.raises(InputError, match=r"is not an image"):
            predictor(wrong)
    with pytest.raises(InputError, match=r"^The image: has 2 bands"):
        predictor(image[:, :, :2])


def test_arrays_of_other_types_are_those_of_files(checkpoint, image, tmp_path, caplog):
    """The units of floats are their own; a picture shows each band from its 2nd percentile on."""
    predictor = Predictor(checkpoint, device="cpu")
    deep = image.astype("uint16") * 16
    np.save(tmp_path / "image.npy", deep)
    x = (deep / 65535 - MEAN) / STD
    with paddle.no_grad():
        logits = smallest_model()(paddle.to_tensor(x.transpose(2, 0, 1)[None].astype("float32")))[0]
    expected = logits.numpy()[0].argmax(axis=0)
    for same in (deep, tmp_path / "image.npy", deep / np.float32(65535)):
        prediction = predictor(same)
        assert (prediction.label_map == expected).mean() > 0.999
        low, high = np.percentile(deep.astype(float), [2, 98], axis=(0, 1))
        stretched = np.clip((deep - low) / (high - low) * 255, 0, 255)
        np.testing.assert_allclose(prediction.image, stretched, atol=1)
    assert "pass uint8" not in caplog.text
    predictor(image.astype("float32"))
    assert "pass uint8" in caplog.text


@pytest.mark.parametrize("bands", [1, 2, 5])
def test_pictures_of_other_numbers_of_bands(bands):
    image = np.random.default_rng(0).integers(0, 255, [5, 6, bands]).astype("uint8")
    picture = to_picture(image[:, :, 0] if bands == 1 else image)
    expected = image[:, :, :3] if bands == 5 else image[:, :, :1].repeat(3, axis=2)
    np.testing.assert_array_equal(picture, expected)
    assert (to_picture(np.zeros([5, 6], "float32")) == 0).all()


def test_the_number_of_bands_is_inferred_from_weights(tmp_path):
    model = small_model(backbone=lambda: MixVisionTransformer(**SMALLEST, in_channels=6))
    image = np.random.default_rng(0).integers(0, 255, [64, 96, 6]).astype("uint8")
    predictor = Predictor(save(model, tmp_path / "model.pdparams"), device="cpu")
    assert predictor.channels == 6
    x = (image / 255 - 0.5) / 0.5
    with paddle.no_grad():
        logits = model(paddle.to_tensor(x.transpose(2, 0, 1)[None].astype("float32")))[0]
    expected = logits.numpy()[0].argmax(axis=0)
    assert (predictor(image).label_map == expected).mean() > 0.999


def test_a_prediction_keeps_its_image(checkpoint, image):
    """Callers may reuse the array."""
    buffer = image.copy()
    prediction = Predictor(checkpoint, device="cpu")(buffer)
    buffer[:] = 0
    np.testing.assert_array_equal(prediction.image, image)


def test_a_pillow_image_is_read_as_its_file(checkpoint, image, tmp_path):
    """With an EXIF orientation, and with 16 bits."""
    predictor = Predictor(checkpoint, device="cpu")
    exif = Image.Exif()
    exif[274] = 6
    Image.fromarray(image).save(tmp_path / "rotated.jpg", exif=exif)
    cv2.imwrite(str(tmp_path / "16_bit.png"), image[:, :, 0].astype("uint16") * 257)
    for name in ("rotated.jpg", "16_bit.png"):
        by_path = predictor(tmp_path / name)
        by_pillow = predictor(Image.open(tmp_path / name))
        np.testing.assert_allclose(by_pillow.image, by_path.image.astype(int), atol=2)
        assert by_pillow.label_map.shape == by_path.label_map.shape
    with pytest.raises(InputError, match="cannot be segmented: not an image of 8 or 16-bit"):
        predictor(Image.fromarray(image[:, :, 0].astype("int32")))


def test_classes_of_the_same_name_have_one_share(checkpoint, image):
    prediction = Predictor(checkpoint, device="cpu")(image)
    counts = np.bincount(prediction.label_map.ravel(), minlength=5) / prediction.label_map.size
    object.__setattr__(prediction, "classes", ["a", "b", "a", "c", "d"])
    np.testing.assert_allclose(prediction.shares().get("a", 0), counts[0] + counts[2])
    np.testing.assert_allclose(sum(prediction.shares().values()), 1)


def test_too_many_classes_for_a_label_map(tmp_path):
    path = save(smallest_model(classes=256), tmp_path / "model.pdparams")
    with pytest.raises(InputError, match="has 256 classes; label maps hold 255"):
        Predictor(path, device="cpu")


def test_options_that_do_not_apply(checkpoint):
    with pytest.raises(InputError, match="is not an exported graph"):
        Predictor(checkpoint, device="cpu", backend="paddle")


@pytest.mark.cpu_branch("there is no GPU")
def test_a_missing_gpu_is_an_input_error(checkpoint):
    with pytest.raises(InputError, match="--device gpu"):
        Predictor(checkpoint, device="gpu")


def write_model_with(folder, transform, **test_config):
    """A checkpoint whose manifest has a transform before ``Normalize``, and a ``test_config``."""
    path = write_model(folder) / "manifest.json"
    manifest = json.loads(path.read_text())
    normalize = {"type": "Normalize", "mean": MEAN.tolist(), "std": STD.tolist()}
    manifest["config"]["val_dataset"] = {"transforms": [transform, normalize]}
    manifest["config"]["test_config"] = test_config
    path.write_text(json.dumps(manifest))


def test_transforms_and_test_config_of_a_manifest(image, tmp_path):
    """Resized to 224x160, and that by 0.5."""
    resize = {"type": "Resize", "target_size": [224, 160]}
    write_model_with(tmp_path, resize, aug_eval=True, scales=[0.5])
    resized = cv2.resize(image.astype("float32"), (112, 80))
    expected = expected_labels(smallest_model(), resized, size=(96, 128))
    found = Predictor(tmp_path, device="cpu")(image).label_map
    assert (found == expected).mean() > 0.999


def test_an_image_that_the_transforms_do_not_support(image, tmp_path):
    write_model_with(tmp_path, {"type": "Padding", "target_size": [96, 96]})
    with pytest.raises(
        InputError, match=r"^The image of 128x96 cannot be transformed .*target_size"
    ):
        Predictor(tmp_path, device="cpu")(image)


def test_class_names_of_weights_without_a_manifest(tmp_path):
    """Of ADE20K if there are 150; else those of Hugging Face's config.json, or numbers."""
    weights = save(smallest_model(classes=150), tmp_path / "model.pdparams")
    predictor = Predictor(weights, device="cpu")
    assert predictor.classes[:3] == ["wall", "building", "sky"] and len(predictor.classes) == 150
    np.testing.assert_array_equal(predictor.palette[:2], [[120, 120, 120], [180, 120, 120]])
    names = [f"class {letter}" for letter in "zyxwvutsrqp"]
    save(smallest_model(classes=11), weights)
    assert Predictor(weights, device="cpu").classes == [str(i) for i in range(11)]
    labels = {str(i): names[i] for i in (10, *range(10))}
    (tmp_path / "config.json").write_text(json.dumps({"id2label": labels}))
    assert Predictor(tmp_path, device="cpu").classes == names


@pytest.mark.integration
def test_a_training_checkpoint_needs_no_config(tmp_path):
    """Architecture, transforms, class names and palette come from its manifest."""
    write_scenes(tmp_path, train=2, val=1, size=(96, 96))
    roots = [f"{split}_dataset.dataset_root={tmp_path}" for split in ("train", "val")]
    roots.append(f"model.backbone={json.dumps({'type': 'MixVisionTransformer', **SMALLEST})}")
    config = load_config("configs/quickstart.yaml", roots, iters=1, batch_size=2)
    train(config, save_dir=str(tmp_path / "run"), do_eval=True)
    photo = tmp_path / "images/validation/scene_val_00000001.jpg"
    config = load_config("configs/quickstart.yaml", roots)
    weights = tmp_path / "run/best_model/model.pdparams"
    expected = Predictor(weights, config=config, device="cpu")(photo)
    for source in (tmp_path / "run/best_model", weights, tmp_path / "run/iter_1"):
        prediction = Predictor(source, device="cpu")(photo)
        np.testing.assert_array_equal(prediction.label_map, expected.label_map)
        assert prediction.classes == list(ADE20K.CLASS_NAMES)
        np.testing.assert_array_equal(prediction.palette, ADE20K.PALETTE)
    manifest = tmp_path / "run/best_model/manifest.json"
    manifest.write_text(json.dumps({"config": 3}))
    with pytest.raises(InputError, match=r"manifest\.json: cannot be read"):
        Predictor(weights, device="cpu")


def test_weights_of_a_backbone_are_rejected(tmp_path):
    path = save(smallest_model().backbone, tmp_path / "backbone.pdparams")
    with pytest.raises(InputError, match="does not have all weights of a SegFormer"):
        Predictor(path, device="cpu")


@needs_shared
def test_a_hugging_face_folder():
    """The label map of Hugging Face's implementation, and its class names."""
    predictor = Predictor(SHARED / "weights/segformer_b0_cityscapes_hf", device="cpu")
    prediction = predictor(SHARED / "reference/cityscapes_demo.png")
    expected = np.load(SHARED / "reference/cityscapes_demo_logits.npz")["argmax_full"]
    assert (prediction.label_map == expected).mean() > 0.9999
    assert next(iter(prediction.shares())) == "road" and "traffic light" in predictor.classes
