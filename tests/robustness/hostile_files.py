"""Small files that would take gigabytes or minutes of a careless reader."""

import gzip
import io
import json
import struct
import tarfile
import zipfile
import zlib

from PIL import Image


def text(value):
    """A string, of which the memo holds nothing."""
    data = value.encode()
    return b"X" + struct.pack("<I", len(data)) + data


def put(index):
    return b"r" + struct.pack("<I", index)


def get(index):
    return b"j" + struct.pack("<I", index)


def number(value):
    return b"J" + struct.pack("<i", value)


def call(module, name, *arguments):
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


def document(*items):
    """A pickle of a dictionary, from opcodes of keys and values."""
    return b"\x80\4}(" + b"".join(items) + b"u."


def array(data, dtype="f4", order="<", shape=None):
    kind = call("numpy", "dtype", text(dtype), b"\x89", b"\x88")
    kind += b"(K\3" + text(order) + b"NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
    empty = call("numpy.core.multiarray", "_reconstruct", b"cnumpy\nndarray\n", b"K\0\x85", b"C\1b")
    size = number(len(data) // int(dtype[1])) + b"\x85" if shape is None else shape
    return empty + b"(K\1" + size + kind + b"\x89B" + struct.pack("<I", len(data)) + data + b"tb"


def repeated_call(module, name, item, count):
    """Many calls of a function with one list of a million of an item, here shared."""
    shared = b"](" + item * 20_000 + b"e\x85" + put(1) + b"0"
    function = f"c{module}\n{name}\n".encode()
    return document(text("x"), b"](" + shared + (function + get(1) + b"R") * count + b"e")


def shared_array(dtype, order, count=1000):
    data = bytes(1 << 20)
    shared = array(data, dtype, order) + put(1)
    names = (text(f"n{i}") + get(1) for i in range(count))
    return document(text("x"), shared, *names)


def colliding(step, count, size):
    """Integer keys with the same place in a dictionary."""
    opcode = b"\x8a" + bytes([size])
    items = (opcode + (i * step).to_bytes(size, "little") + b"N" for i in range(count))
    return document(*items)


def repeated_shape():
    shape = b"(" + b"K\1" * 200_000 + b"t" + put(1) + b"0"
    value = array(bytes(4), shape=get(1))
    return document(text("x"), shape + b"](" + value * 2000 + b"e")


def nested_type():
    """A type whose text has 2 ** 60 characters."""
    lists = b"]" + put(0) + b"".join(b"](" + 2 * get(i) + b"e" + put(i + 1) for i in range(60))
    return document(text("x"), lists + call("numpy", "dtype", get(60)))


def shared_trees():
    """Dictionaries with 2 ** 60 arrays, if each is counted."""
    pairs = (
        text(f"d{i}") + b"}(" + text("a") + get(i) + text("b") + get(i) + b"u" + put(i + 1)
        for i in range(60)
    )
    return document(text("x"), array(bytes(4)) + put(0) + b"".join(pairs))


def long_keys():
    key = "k" * 1_000_000
    pairs = get(1) + b"N" + get(2) + b"N"
    return document(
        text("x"), text(key) + put(1) + text(key) + put(2) + b"00}(" + pairs * 9999 + b"u"
    )


def memo():
    """Indices of the memo with the same place in a dictionary, in a file larger than they."""
    indices = b"".join(put(i << 15) for i in range(100))
    return document(text("x"), b"N" + indices + b"0" + text("y" * (100 << 15)) + indices)


def torch(pickled, **storages):
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickled)
        for name, data in storages.items():
            archive.writestr(f"a/data/{name}", data)
    return file.getvalue()


def torch_tensor(count, name="x", kind="FloatStorage"):
    storage = b"(" + text("storage") + f"ctorch\n{kind}\n".encode() + text(name) + text("cpu")
    storage += number(count) + b"tQ"
    view = storage + b"K\0" + number(count) + b"\x85" + b"K\1\x85" + b"\x89}"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + view + b"tR"


def storage_of_many_sizes():
    items = (text(f"n{i}") + torch_tensor(250_000 - i) for i in range(1000))
    return torch(document(*items), x=bytes(1_000_000))


def storages_of_many_types():
    kinds = ("BFloat16", "Half", "Short")
    items = (
        text(f"{k}{i}") + torch_tensor(500_000, kind=k + "Storage")
        for i in range(400)
        for k in kinds
    )
    return torch(document(*items), x=bytes(1_000_000))


def overlapping_storages():
    """Each entry of the archive contains the ones after it."""
    count, size, file = 400, 1_000_000, b""
    names = [f"a/data/{i}" for i in range(count)]
    headers, end = [], bytes(size)
    for name in reversed(names):
        crc, fields = zlib.crc32(end), struct.pack("<IIHH", len(end), len(end), len(name), 0)
        end = b"PK\3\4" + bytes(10) + struct.pack("<I", crc) + fields + name.encode() + end
        headers.append((name, crc, len(end) - 30 - len(name), len(end)))
    items = (text(f"n{i}") + torch_tensor(1000, str(i)) for i in range(count))
    pickled = document(*items)
    fields = struct.pack("<IIIHH", zlib.crc32(pickled), len(pickled), len(pickled), 10, 0)
    file = end + b"PK\3\4" + bytes(10) + fields + b"a/data.pkl" + pickled
    directory = b""
    offsets = [("a/data.pkl", zlib.crc32(pickled), len(pickled), len(file) - len(end))]
    for name, crc, length, from_end in [*headers, *offsets]:
        offset = len(end) if name == "a/data.pkl" else len(end) - from_end
        sizes = struct.pack("<IIIHHHHHII", crc, length, length, len(name), 0, 0, 0, 0, 0, offset)
        directory += b"PK\1\2" + bytes(12) + sizes + name.encode()
    total = len(headers) + 1
    tail = struct.pack("<HHHHIIH", 0, 0, total, total, len(directory), len(file), 0)
    return file + directory + b"PK\5\6" + tail


def many_entries():
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for i in range(20_000):
            archive.writestr(f"a/data/{i}", b"")
    return file.getvalue()


def zeros(megabytes):
    """The gzip file of so many zeros, as members of one each."""
    return gzip.compress(bytes(1 << 20), 9) * megabytes


def tar_member(kind, size=0, name="model.pdparams", link=""):
    member = tarfile.TarInfo(name)
    member.type, member.size, member.linkname = kind, size, link
    return gzip.compress(member.tobuf(tarfile.GNU_FORMAT))


END = gzip.compress(bytes(1024))


def long_header(kind):
    return tar_member(kind, 300 << 20, "././@LongLink") + zeros(300)


def linked():
    data = tar_member(tarfile.REGTYPE, 300 << 20, "large") + zeros(300)
    return data + tar_member(tarfile.SYMTYPE, link="large") + END


def bomb():
    return tar_member(tarfile.REGTYPE, 300 << 20) + zeros(300) + END


def many_members():
    return gzip.compress(tarfile.TarInfo("a").tobuf() * 20_000, 1) + END


def safetensors(header, data=b""):
    content = json.dumps(header).encode()
    return struct.pack("<Q", len(content)) + content + data


def scalar(shape=(1,), size=4):
    return {"dtype": "F32", "shape": shape, "data_offsets": [0, size]}


def png(width, height, depth=8, color=2, extra=b"", data=b""):
    def chunk(kind, content):
        crc = struct.pack(">I", zlib.crc32(kind + content))
        return struct.pack(">I", len(content)) + kind + content + crc

    header = struct.pack(">IIBBBBB", width, height, depth, color, 0, 0, 0)
    extra = chunk(b"zTXt", b"a\0\0" + extra) if extra else b""
    data = chunk(b"IDAT", zlib.compress(data or bytes(99)))
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + extra + data + chunk(b"IEND", b"")


def tiff(width, height, **tags):
    entries = {256: width, 257: height, 258: 8, 259: 1, 262: 1, 273: 8, 277: 1, 278: height, 279: 9}
    entries.update({int(tag[1:]): value for tag, value in tags.items()})
    content = b"".join(struct.pack("<HHII", tag, 4, 1, v) for tag, v in sorted(entries.items()))
    return b"II*\0" + struct.pack("<IH", 8, len(entries)) + content + bytes(16)


def webp(width, height):
    bits = (width - 1) | (height - 1) << 14
    data = b"\x2f" + struct.pack("<I", bits) + bytes(64)
    return (
        b"RIFF"
        + struct.pack("<I", len(data) + 12)
        + b"WEBPVP8L"
        + struct.pack("<I", len(data))
        + data
    )


def npy(shape):
    header = f"{{'descr': '<f8', 'fortran_order': False, 'shape': {shape}, }}".ljust(117) + "\n"
    return b"\x93NUMPY\1\0" + struct.pack("<H", len(header)) + header.encode()


def aliases(first, item, levels=12):
    lines = [f"a0: &a0 {first}"]
    lines += [
        f"a{i + 1}: &a{i + 1} {item.format(', '.join([f'*a{i}'] * 9))}" for i in range(levels)
    ]
    return "\n".join(lines).encode()


def postscript():
    return b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 64\n%%EndComments\n{} loop\n"


def gif(side):
    size = struct.pack("<HH", side, side)
    return b"GIF89a" + size + b"\x80\0\0" + bytes(6) + b"," + bytes(4) + size + b"\0\2\1\4\0;"


def scans():
    """A progressive JPEG of which the last scan is repeated."""
    file = io.BytesIO()
    Image.new("RGB", (4000, 4000)).save(file, "JPEG", progressive=True)
    data = file.getvalue()
    start, end = data.rindex(b"\xff\xda"), data.rindex(b"\xff\xd9")
    return data[:end] + 3000 * data[start:end] + data[end:]


def pages():
    """A TIFF of 3000 pages, all of the same pixels."""
    header, page = tiff(4, 4)[:8], tiff(4, 4)[8:-16]
    start = len(header) + 16
    header = header[:4] + struct.pack("<I", start)
    steps = range(start, start + 3000 * (len(page) + 4), len(page) + 4)
    links = [*steps[1:], 0]
    return header + bytes(16) + b"".join(page + struct.pack("<I", link) for link in links)


CHECKPOINTS = {
    "tuples of one list": lambda: repeated_call("builtins", "tuple", b"K\1", 2000),
    "mappings of one list": lambda: repeated_call("collections", "OrderedDict", b"K\1N\x86", 2000),
    "empty lists": lambda: document(text("x"), b"](" + b"]" * 2_000_000 + b"e"),
    "empty dictionaries": lambda: document(text("x"), b"](" + b"}" * 2_000_000 + b"e"),
    "marks": lambda: document(text("x"), b"(" * 2_000_000),
    "a big-endian array of many names": lambda: shared_array("f4", ">"),
    "a uint16 array of many names": lambda: shared_array("u2", "<"),
    "integers that collide modulo 2 ** 61 - 1": lambda: colliding((1 << 61) - 1, 60_000, 10),
    "integers that collide in their low bits": lambda: colliding(1 << 40, 60_000, 8),
    "a type that is a nested list": nested_type,
    "a shape of many dimensions": repeated_shape,
    "dictionaries that share": shared_trees,
    "two equal long keys": long_keys,
    "a memo of far indices": memo,
    "an index beyond the memo": lambda: document(text("x"), b"N" + put(60_000_000)),
    "a name of 5 MB": lambda: document(text("n" * 5_000_000), array(bytes(4))),
    "200,000 names": lambda: document(
        array(bytes(4)) + put(1) + b"0", *(text(str(i)) + get(1) for i in range(200_000))
    ),
    "one storage of many sizes": storage_of_many_sizes,
    "one storage of many types": storages_of_many_types,
    "overlapping storages": overlapping_storages,
    "many files in a zip": many_entries,
    "a long name of gigabytes": lambda: long_header(tarfile.GNUTYPE_LONGNAME),
    "a pax header of gigabytes": lambda: long_header(tarfile.XHDTYPE),
    "a link to a large member": linked,
    "a gzip bomb": bomb,
    "many members of a tar": many_members,
    "a folder in a tar": lambda: tar_member(tarfile.DIRTYPE, name="model.pdparams") + END,
    "a negative size in a tar": lambda: tar_member(tarfile.REGTYPE, -1) + zeros(300) + END,
    "many empty tensors": lambda: safetensors({str(i): scalar([0], 0) for i in range(60_000)}),
    "many dimensions": lambda: safetensors({"a": scalar([1] * 1_000_000)}, bytes(4)),
    "a safetensors name of 5 MB": lambda: safetensors({"n" * 5_000_000: scalar()}, bytes(4)),
}
CONFIGS = {
    "aliases": lambda: aliases("[x, x]", "[{}]"),
    "merged mappings": lambda: aliases("{x: 1, y: 2}", "{{<<: [{}]}}"),
    "aliases of a long text": lambda: aliases("x" * 100_000, "[{}]", 4),
    "many values": lambda: b"a: [" + b"1," * 2_000_000 + b"1]",
    "deep": lambda: b"a: " + b"[" * 100_000,
    "a long number": lambda: b"iters: " + b"1" * 200_000,
    "bases": lambda: b"_base_: [" + b"/dev/null, " * 20_000 + b"/dev/null]",
}
IMAGES = {
    "PostScript": postscript,
    "PNG of 2 ** 29 pixels": lambda: png(1 << 15, 1 << 14, 1, 0, data=bytes(4097 << 14)),
    "PNG of 2 ** 31 pixels": lambda: png(1 << 16, 1 << 15),
    "PNG of 16 bits": lambda: png(1 << 15, 1 << 15, 16),
    "PNG with a text bomb": lambda: png(8, 8, extra=zlib.compress(bytes(100 << 20))),
    "GIF of 2 ** 27.5 pixels": lambda: gif(13_820),
    "GIF of 2 ** 28.7 pixels": lambda: gif(21_000),
    "JPEG of many scans": scans,
    "TIFF of many pages": pages,
    "TIFF of 2 ** 62 pixels": lambda: tiff((1 << 31) - 1, (1 << 31) - 1),
    "TIFF of many bands": lambda: tiff(1 << 15, 1 << 15, _277=65535),
    "TIFF in deflate": lambda: tiff(1 << 15, 1 << 15, _259=8),
    "WebP of 2 ** 28 pixels": lambda: webp(1 << 14, 1 << 14),
    "an array of terabytes": lambda: npy((1 << 20, 1 << 20)),
}
