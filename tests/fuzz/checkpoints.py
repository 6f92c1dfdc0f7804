"""Any checkpoint file gives tensors or an InputError; no code is run and no file is written."""

# First, as only modules that are not imported yet can be instrumented.
import atheris

with atheris.instrument_imports(
    include=["pickle", "zipfile", "tarfile", "paddleseg_segformer"], enable_loader_override=False
):
    import io
    import pickle
    import tarfile
    import zipfile

    from paddleseg_segformer.errors import InputError
    from paddleseg_segformer.weights import read_weights
    from paddleseg_segformer.weights.checkpoint_io import read_checkpoint

import os
import sys
import tempfile
from collections import OrderedDict

import numpy as np
from fuzzing import check_error, fuzz
from safetensors.numpy import save

PATH = os.path.join(tempfile.mkdtemp(), "model.pth")
TENSORS = {
    "backbone.block1.0.attn.kv.weight": np.ones([2, 4], "float32"),
    "backbone.patch_embed1.proj.weight": np.ones([2, 3, 1, 1], "float16"),
    "b": np.arange(3),
}
# A pickle of PyTorch, by hand.
STORAGE = b"(X\7\0\0\0storagectorch\nFloatStorage\nX\1\0\0\0xX\3\0\0\0cpuK\4tQ"
TENSOR = b"ctorch._utils\n_rebuild_tensor_v2\n(" + STORAGE + b"K\0(K\2K\2t(K\2K\1t\x89}tR"
TORCH = b"\x80\2}(X\5\0\0\0stateX\10\0\0\0a.weight" + TENSOR + b"u."
FORBIDDEN = ("os.", "subprocess.", "socket.", "shutil.", "ctypes.")

events = None


def audit(event, arguments):
    """Audit hook that records code that is run and files that are opened."""
    if events is None:
        return
    writes = event == "open" and (set(str(arguments[1])) & set("wax+") or arguments[2] & 3)
    text = event == "exec" and arguments[0].co_filename == "<string>"  # and not an import
    if writes or text or event.startswith(FORBIDDEN):
        events.append((event, arguments))


def as_file(kind, data):
    """The pickled data in a file format of Paddle (0), PyTorch (1) or PaddleSeg's archives (2)."""
    file = io.BytesIO()
    if kind == 1:
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("archive/data.pkl", data)
            archive.writestr("archive/data/x", bytes(16))
    elif kind == 2:
        with tarfile.open(fileobj=file, mode="w:gz", compresslevel=1) as archive:
            member = tarfile.TarInfo("model.pdparams")
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return file.getvalue() or data


def one_input(data):
    global events
    if not data:
        return
    with open(PATH, "wb") as file:
        file.write(as_file(data[0] % 3, data[1:]))
    events = []
    try:
        for name, value in read_checkpoint(PATH).items():
            assert type(name) is str and type(value) is np.ndarray, (name, value)
        for value in read_weights(PATH).state.values():
            assert np.isfinite(value).all()
    except InputError as error:
        check_error(error)
    finally:
        recorded, events = events, None
    assert not recorded, recorded


def seeds():
    for protocol in (2, 4):
        yield b"\0" + pickle.dumps(OrderedDict(TENSORS), protocol)
        yield b"\2" + pickle.dumps({"state_dict": dict(TENSORS), "epoch": 3, "lr": 0.5}, protocol)
        yield b"\0" + pickle.dumps({"a": ("name", np.float32(3)), "b": [1, None]}, protocol)
    yield b"\0" + save(TENSORS)
    yield b"\1" + TORCH
    for kind, data in ((1, TORCH), (2, pickle.dumps(TENSORS))):
        yield b"\0" + as_file(kind, data)


if __name__ == "__main__":
    sys.addaudithook(audit)
    fuzz(one_input, seeds())
