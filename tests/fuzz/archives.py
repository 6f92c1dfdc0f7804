"""Any zip or tar file gives tensors or an InputError, in memory that its size bounds.

The members have any number, name, type, size and compression, and headers that claim other sizes
and places. ``checkpoints.py`` mutates what is in them.
"""

# First, as only modules that are not imported yet can be instrumented.
import atheris

with atheris.instrument_imports(
    include=["zipfile", "tarfile", "gzip", "paddleseg_segformer"], enable_loader_override=False
):
    import gzip
    import io
    import tarfile
    import zipfile

    from paddleseg_segformer.errors import InputError
    from paddleseg_segformer.weights.checkpoint_io import read_checkpoint

import os
import pickle
import struct
import tempfile
from pathlib import Path

import numpy as np
from checkpoints import TORCH
from fuzzing import check_error, fuzz

PATH = Path(tempfile.mkdtemp(), "model.tar.gz")
PADDLE = pickle.dumps({"a.weight": np.ones([2, 2], "float32")}, 2)
ZEROS = gzip.compress(bytes(1 << 20))
CONTENTS = [PADDLE, TORCH, bytes(16), b"", bytes(511), b"27 path=model.pdparams\n"]
NAMES = ["model.pdparams", "a/data.pkl", "a/data/x", "b/data.pkl", "../../a.pdparams", "a" * 200]
TYPES = [tarfile.REGTYPE, tarfile.AREGTYPE, tarfile.LNKTYPE, tarfile.SYMTYPE, tarfile.CHRTYPE]
TYPES += [tarfile.DIRTYPE, tarfile.FIFOTYPE, tarfile.CONTTYPE, tarfile.GNUTYPE_SPARSE, b"?"]
TYPES += [tarfile.GNUTYPE_LONGNAME, tarfile.GNUTYPE_LONGLINK, tarfile.XHDTYPE, tarfile.XGLTYPE]
SIZES = [1, 512, 1 << 20, 1 << 28, 1 << 33, 1 << 62, -1, -512]
# Bytes of memory for each byte of the file, and a constant, as the documentation states.
FACTOR, CONSTANT = 20, 200e6


def tar_gz(choose):
    """A tar file, each member of which is compressed by itself."""
    parts = []
    for _ in range(choose.ConsumeIntInRange(0, 4)):
        member = tarfile.TarInfo(choose.PickValueInList(NAMES))
        content = choose.PickValueInList(CONTENTS)
        member.size, repeats = len(content), 0
        if choose.ConsumeBool():
            member.type = choose.PickValueInList(TYPES)
        if choose.ConsumeIntInRange(0, 3) == 0:
            repeats = choose.ConsumeIntInRange(0, 300)
            member.size = choose.PickValueInList([*SIZES, repeats << 20])
        header = member.tobuf(choose.PickValueInList([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]))
        parts.append(gzip.compress(header, 1) + repeats * ZEROS)
        if not repeats:
            parts.append(gzip.compress(content + bytes(-len(content) % tarfile.BLOCKSIZE), 1))
    return b"".join(parts) + gzip.compress(bytes(choose.PickValueInList([0, 512, 1024])))


def zip_file(choose):
    """A zip file, with some numbers of its headers changed."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for _ in range(choose.ConsumeIntInRange(0, 4)):
            name = choose.PickValueInList(NAMES)
            content = choose.PickValueInList([*CONTENTS, bytes(1 << 22)])
            compression = choose.PickValueInList([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
            archive.writestr(name, content, compression)
    data = bytearray(file.getvalue())
    entry = data.find(b"PK\1\2")
    while entry >= 0:
        if choose.ConsumeIntInRange(0, 3) == 0:  # sizes or the place of the member
            field = choose.PickValueInList([20, 24, 42])
            data[entry + field : entry + field + 4] = struct.pack("<I", choose.ConsumeUInt(4))
        entry = data.find(b"PK\1\2", entry + 1)
    return data


def one_input(data):
    choose = atheris.FuzzedDataProvider(data)
    archive = bytearray((tar_gz, zip_file)[choose.ConsumeIntInRange(0, 1)](choose))
    for _ in range(choose.ConsumeIntInRange(0, 3)):
        position = choose.ConsumeIntInRange(0, len(archive) - 1)
        archive[position : position + choose.ConsumeIntInRange(0, 4)] = choose.ConsumeBytes(4)
        if not archive:
            return
    PATH.write_bytes(archive)
    Path("/proc/self/clear_refs").write_text("5")  # the peak of memory begins here
    before = memory("VmRSS")
    try:
        for name, value in read_checkpoint(PATH).items():
            assert type(name) is str and type(value) is np.ndarray, (name, value)
    except InputError as error:
        check_error(error)
    taken = memory("VmHWM") - before
    assert taken <= FACTOR * len(archive) + CONSTANT, f"{len(archive)} bytes took {taken}"
    assert os.listdir(PATH.parent) == [PATH.name]


def memory(key):
    return 1024 * int(Path("/proc/self/status").read_text().split(f"{key}:")[1].split()[0])


if __name__ == "__main__":
    fuzz(one_input, [bytes([i] * 60) for i in range(0, 256, 8)])
