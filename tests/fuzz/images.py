"""Any image file gives an 8-bit BGR image or an InputError; the process does not crash."""

import io

import atheris

with atheris.instrument_imports(
    include=["PIL", "paddleseg_segformer"], enable_loader_override=False
):
    from PIL import Image

    from paddleseg_segformer.data import size_limit
    from paddleseg_segformer.data.image_io import decode_image
    from paddleseg_segformer.errors import InputError

import numpy as np
from fuzzing import check_error, fuzz

MODES_BY_FORMAT = {
    "PNG": ("RGB", "L", "RGBA", "LA", "P", "1", "I;16"),
    "JPEG": ("RGB", "L", "CMYK"),
    "TIFF": ("RGB", "L", "CMYK", "I;16", "F", "1"),
    "WEBP": ("RGB", "RGBA"),
    "GIF": ("P",),
    "BMP": ("RGB", "P"),
    "PPM": ("RGB",),
    "JPEG2000": ("RGB",),
    "TGA": ("RGB",),
}
OPTIONS_BY_FORMAT = {"JPEG": {"progressive": True}, "WEBP": {"lossless": True}}
ANIMATED = ("GIF", "PNG", "WEBP")


def one_input(data):
    if not data:
        return
    try:
        image = decode_image(data)
    except InputError as error:
        check_error(error)
        return
    assert image.dtype in (np.uint8, np.float32) and image.ndim == 3 and image.shape[2] == 3
    assert image.size and np.isfinite(image).all()


def saved(picture, file_format, **options):
    file = io.BytesIO()
    picture.save(file, file_format, **options)
    return file.getvalue()


def seeds():
    picture = Image.fromarray(np.random.default_rng(0).integers(0, 255, [9, 7, 3]).astype("uint8"))
    exif = Image.Exif()
    exif[274] = 6
    for file_format, modes in MODES_BY_FORMAT.items():
        for mode in modes:
            options = {"exif": exif} if file_format in ("PNG", "JPEG", "WEBP", "TIFF") else {}
            converted = picture.convert("L" if mode == "I;16" else "RGB").convert(mode)
            yield saved(converted, file_format, **options)
    for file_format, options in OPTIONS_BY_FORMAT.items():
        yield saved(picture, file_format, **options)
    for file_format in ANIMATED:
        yield saved(picture, file_format, save_all=True, append_images=[picture.rotate(180)])


if __name__ == "__main__":
    size_limit.SMALL = 20_000_000  # decoding what it allows would take seconds
    fuzz(one_input, seeds())
