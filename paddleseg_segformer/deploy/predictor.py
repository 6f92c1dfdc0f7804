"""Label maps and pictures of image files."""

from pathlib import Path

import cv2
from paddleseg.transforms import Compose
from tqdm import tqdm

from ..config import build
from ..data import palette
from ..errors import InputError
from .protocol import Protocol
from .segmenter import Segmenter, load_model
from .visualise import colour_map, overlay

IMAGE_ENDINGS = {".jpg", ".jpeg", ".png", ".bmp", ".webp", ".tif", ".tiff"}

# PaddleSeg's names for the folders of its two kinds of picture; the raw map is ours.
OVERLAYS, COLOUR_MAPS, LABEL_MAPS = "added_prediction", "pseudo_color_prediction", "label_map"


def find_images(path):
    """The image files that ``path`` means.

    Args:
        path: An image, a folder searched with its subfolders, or a text file that has an image
            path as each line's first word, relative to the text file.

    Returns:
        The common folder of the images, and their paths relative to it.

    Raises:
        InputError: There is no such path, or no image in it.
    """
    path = Path(path)
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in IMAGE_ENDINGS)
        root, names = path, [file.relative_to(path) for file in files]
    elif not path.is_file():
        raise InputError(f"{path}: no such image, folder or list of images.")
    elif path.suffix.lower() in IMAGE_ENDINGS:
        root, names = path.parent, [Path(path.name)]
    else:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: is neither an image nor a text file of paths.") from error
        root, names = path.parent, [Path(line.split()[0]) for line in lines if line.strip()]
    if not names:
        raise InputError(f"{path}: holds no image ({', '.join(sorted(IMAGE_ENDINGS))}).")
    return root, names


def _target_name(name):
    """Where an image's pictures go below a folder: never outside it, whatever its own path."""
    parts = [part for part in name.parts if part not in (name.anchor, "..")]
    return Path(*parts).with_suffix(".png")


def predict(config, model_path, image_path, save_dir, **options):
    """Segment image files and write an overlay, a colour map and a label map of each.

    Args:
        config: PaddleSeg's ``Config``.
        model_path: Weights of the whole model; see ``load_weights``.
        image_path: As in ``find_images``.
        save_dir: Folder for ``added_prediction``, ``pseudo_color_prediction`` and ``label_map``;
            in each, images keep their names and subfolders, as PNG.
        options: Override keys of the configuration's ``test_config``; see ``Protocol``.

    Returns:
        The number of images.

    Raises:
        InputError: There is no image, or one cannot be read.
    """
    protocol = Protocol.of_config(config, **options)
    root, names = find_images(image_path)
    transforms = Compose(build(config, "val_transforms")[0])
    colours = palette(build(config, "val_dataset_class")[0])[:, ::-1]  # OpenCV's order is BGR
    segmenter = Segmenter(load_model(config, model_path), transforms, protocol)
    targets = {_target_name(name): name for name in names}
    if len(targets) < len(names):
        twice = next(name for name in names if name not in targets.values())
        raise InputError(
            f"{root / twice}: its pictures would have the same names as those of "
            f"{root / targets[_target_name(twice)]}; segment the two one at a time."
        )
    for target, name in tqdm(targets.items(), desc="predict", unit="image", disable=None):
        path = root / name
        image = cv2.imread(str(path))
        if image is None:
            raise InputError(f"{path}: cannot be read as an image.")
        (labels,) = segmenter([segmenter.views(image)])
        labels = labels.numpy().astype("uint8")
        pictures = {
            OVERLAYS: overlay(image, labels, colours),
            COLOUR_MAPS: colour_map(labels, colours),
            LABEL_MAPS: labels,
        }
        for folder, picture in pictures.items():
            _write(Path(save_dir) / folder / target, picture)
    return len(names)


def _write(path, picture):
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(cv2.imencode(path.suffix, picture)[1])
    except OSError as error:
        raise InputError(f"--save_dir: {path} cannot be written ({error.strerror}).") from error
