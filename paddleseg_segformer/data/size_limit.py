"""The bound on what decoding an image takes, checked before it is decoded."""

# Bytes of the decoded image: what any file may take, and for each byte of the file. Photos take
# 2 to 30; a header of a few bytes may claim any size.
SMALL, FACTOR = 400_000_000, 200
MAX = 1 << 32
MAX_SCANS = 200  # of a progressive JPEG, each of which may be a few bytes; encoders write about 10

PNG_SIGNATURE, JPEG_SIGNATURE, BMP_SIGNATURE = b"\x89PNG\r\n\x1a\n", b"\xff\xd8", b"BM"
START_OF_SCAN = b"\xff\xda"
# Markers of a JPEG: those of a frame, which has the size, and those without a length.
FRAMES = {*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC}
WITHOUT_LENGTH = {0x01, *range(0xD0, 0xD9)}


def check_size(file_size, height, width, bands=3, is_8bit=True):
    """Refuse an image that would take much more memory than its file calls for.

    In memory, an image has a byte for each value of 8 bits and four for each other one.

    Args:
        file_size: Size of the file in bytes.
        height: Number of rows.
        width: Number of columns.
        bands: Number of bands, of images at least three, since one is repeated for RGB models.
        is_8bit: Whether the values have at most 8 bits.

    Raises:
        ValueError: The image is too large.
    """
    size = height * width * bands * (1 if is_8bit else 4)
    limit = min(SMALL + FACTOR * file_size, MAX)
    if size > limit:
        raise ValueError(
            f"{width}x{height} pixels of {bands} band{'s' * (bands > 1)} take {size / 1e6:,.0f} MB,"
            f" above the limit of {limit / 1e6:,.0f} MB for a file of {file_size:,} bytes; check "
            "it, or cut the image into tiles"
        )


def check_header(data, bands=3):
    """``check_size`` of a file whose decoder allocates memory before it tells the size.

    Args:
        data: Bytes of a file of any format; of others than JPEG, PNG, BMP and WebP, nothing is
            checked.
        bands: As of ``check_size``.

    Raises:
        ValueError: The image is too large, or a JPEG has too many scans.
    """
    if data.startswith(JPEG_SIGNATURE):
        size = _jpeg_size(data)
        if data.count(START_OF_SCAN) > MAX_SCANS:
            raise ValueError(f"it has more than {MAX_SCANS} scans; save it again")
    elif data.startswith(PNG_SIGNATURE):
        size = png_size(data)
    elif data.startswith(BMP_SIGNATURE):
        size = _bmp_size(data)
    elif data.startswith(b"RIFF") and data[8:12] == b"WEBP":
        size = _webp_size(data)
    else:
        return
    check_size(len(data), *size, bands)


def png_size(data):
    """Height and width in the header of a PNG."""
    return [int.from_bytes(data[start : start + 4], "big") for start in (20, 16)]


def _jpeg_size(data):
    """Height and width as libjpeg finds them: in the first frame header, after any other bytes."""
    at = 2
    while 0 <= (at := data.find(b"\xff", at)) <= len(data) - 9:
        marker = data[at + 1]
        if marker in FRAMES:
            return [int.from_bytes(data[at + i : at + i + 2], "big") for i in (5, 7)]
        if marker == 0xFF:
            at += 1
        elif marker in WITHOUT_LENGTH or marker == 0:
            at += 2
        else:
            at += 2 + int.from_bytes(data[at + 2 : at + 4], "big")
    return 0, 0


def _bmp_size(data):
    size = 2 if data[14:18] == b"\x0c\0\0\0" else 4  # bytes of a number in OS/2's header
    width, height = data[18 : 18 + size], data[18 + size : 18 + 2 * size]
    return abs(int.from_bytes(height, "little", signed=size == 4)), int.from_bytes(width, "little")


def _webp_size(data):
    """Height and width of the canvas, in which all frames of an animation lie."""
    if data[12:16] == b"VP8X":
        return [1 + int.from_bytes(data[start : start + 3], "little") for start in (27, 24)]
    if data[12:16] == b"VP8L":
        bits = int.from_bytes(data[21:25], "little")
        return 1 + (bits >> 14 & 0x3FFF), 1 + (bits & 0x3FFF)
    return [int.from_bytes(data[start : start + 2], "little") & 0x3FFF for start in (28, 26)]
