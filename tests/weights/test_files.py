"""Checkpoint files: every kind read without its framework, and nothing in them ever run."""

import hashlib
import http.server
import os
import pickle
import tarfile
import threading
import zipfile
from collections import OrderedDict

import numpy as np
import paddle
import pytest
from paddleseg.utils import seg_env
from safetensors.numpy import save_file

import paddleseg_segformer as ps
from paddleseg_segformer.weights.files import read_checkpoint, read_dictionary

RNG = np.random.default_rng(0)
TENSORS = {
    "a.weight": RNG.normal(size=[3, 4]).astype("float32"),
    "b": RNG.integers(-9, 9, [2, 2]),
    "scalar": np.array(2.5, dtype="float64"),
    "half": RNG.normal(size=[5]).astype("float16"),
}


def same(actual, expected=TENSORS):
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        assert actual[name].dtype == value.dtype and actual[name].shape == value.shape
        np.testing.assert_array_equal(actual[name], value)


def save_paddle(path):
    paddle.save({name: paddle.to_tensor(value) for name, value in TENSORS.items()}, str(path))


def test_paddle(tmp_path):
    save_paddle(tmp_path / "model.pdparams")
    same(read_checkpoint(tmp_path / "model.pdparams"))


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_pickles_of_arrays(tmp_path, protocol):
    (tmp_path / "old.pdparams").write_bytes(pickle.dumps(OrderedDict(TENSORS), protocol))
    same(read_checkpoint(tmp_path / "old.pdparams"))


def test_nested_state_of_an_optimizer(tmp_path):
    state = {"w_moment1_0": paddle.ones([2]), "master_weights": {"w": paddle.zeros([3])}}
    paddle.save({**state, "LR_Scheduler": {"last_epoch": 4, "last_lr": 0.5}}, str(tmp_path / "o"))
    read = read_dictionary(tmp_path / "o")
    assert read["LR_Scheduler"] == {"last_epoch": 4, "last_lr": 0.5}
    assert any(np.array_equal(part, [0, 0, 0]) for part in read["master_weights"]["w"])


def test_archive(tmp_path):
    save_paddle(tmp_path / "model.pdparams")
    with tarfile.open(tmp_path / "backbone.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model.pdparams", "mix_vision_transformer_b0/model.pdparams")
    same(read_checkpoint(tmp_path / "backbone.tar.gz"))


def test_safetensors_and_folder(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    same(read_checkpoint(tmp_path / "model.safetensors"))
    same(read_checkpoint(tmp_path))


class FakeTorch:
    """Writes files as ``torch.save`` does, without PyTorch: zip, pickle, raw storages."""

    def __init__(self, path, tensors, wrap=lambda state: state):
        with zipfile.ZipFile(path, "w") as self.archive:
            data = _TorchPickle(wrap({n: _Tensor(n, v) for n, v in tensors.items()})).data
            self.archive.writestr("archive/data.pkl", data)
            for key, value in tensors.items():
                self.archive.writestr(f"archive/data/{key}", value.tobytes())


class _Tensor:
    def __init__(self, key, value):
        self.key, self.value = key, value


KINDS = {"float32": "FloatStorage", "int64": "LongStorage", "float64": "DoubleStorage"}
KINDS.update({"float16": "HalfStorage", "uint16": "BFloat16Storage"})


class _TorchPickle:
    """Pickles by hand, in protocol 0's text opcodes, what PyTorch would ask for."""

    def __init__(self, state):
        self.data = b"\x80\x02" + self.item(state) + b"."

    def item(self, value):
        if isinstance(value, dict):
            pairs = b"".join(self.item(k) + self.item(v) for k, v in value.items())
            return b"}(" + pairs + b"u"
        if isinstance(value, str):
            encoded = value.encode()
            return b"X" + len(encoded).to_bytes(4, "little") + encoded
        if isinstance(value, tuple):
            return b"(" + b"".join(map(self.item, value)) + b"t"
        if isinstance(value, bool):
            return b"\x88" if value else b"\x89"
        if isinstance(value, int):
            return b"J" + value.to_bytes(4, "little", signed=True)
        array = value.value
        kind = f"ctorch\n{KINDS[array.dtype.name]}\n".encode()
        storage = b"(" + self.item("storage") + kind + self.item(value.key) + self.item("cpu")
        storage += self.item(array.size) + b"tQ"
        stride = tuple(s // array.itemsize for s in array.strides)
        rest = self.item(0) + self.item(array.shape) + self.item(stride) + self.item(False) + b"}"
        return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def test_torch_without_torch(tmp_path):
    FakeTorch(tmp_path / "model.pth", TENSORS)
    same(read_checkpoint(tmp_path / "model.pth"))


def test_torch_wrapped_and_parallel(tmp_path):
    def wrap(state):
        state = {f"module.{name}": value for name, value in state.items()}
        return {"meta": {"epoch": 3}, "state_dict": state}

    FakeTorch(tmp_path / "a.bin", TENSORS, wrap)
    same(read_checkpoint(tmp_path / "a.bin"))


def test_torch_bfloat16(tmp_path):
    FakeTorch(tmp_path / "m.pth", {"x": np.array([0x3F80, 0xC040, 0x3E80], dtype="uint16")})
    assert read_checkpoint(tmp_path / "m.pth")["x"].tolist() == [1.0, -3.0, 0.25]


def test_torch_tensor_outside_its_storage(tmp_path):
    """Strides that reach beyond the file's bytes must not read other memory."""
    data = _TorchPickle({"x": _Tensor("x", np.zeros([4], "float32"))}).data
    with zipfile.ZipFile(tmp_path / "m.pth", "w") as archive:
        archive.writestr("archive/data.pkl", data.replace(b"J\x04\0\0\0t", b"J\x40\0\0\0t", 1))
        archive.writestr("archive/data/x", bytes(16))
    with pytest.raises(ps.InputError, match=r"m\.pth: is no checkpoint, or is damaged"):
        read_checkpoint(tmp_path / "m.pth")


def test_real_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.Linear(3, 4)
    view = torch.arange(12.0).reshape(3, 4)[1:, ::2].t()
    state = {**layer.state_dict(), "view": view, "p": layer.weight, "i": torch.tensor(3)}
    torch.save({"state_dict": state}, tmp_path / "model.pth")
    actual = read_checkpoint(tmp_path / "model.pth")
    for name, value in state.items():
        np.testing.assert_array_equal(actual[name], value.detach().numpy())


class Malice:
    def __reduce__(self):
        return os.system, ("touch executed",)


def paddle_malice(path):
    path.write_bytes(pickle.dumps({"a": Malice()}))


def torch_malice(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": Malice()}, 2))


def two_candidates(path):
    path.mkdir()
    save_file(TENSORS, path / "model.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"")


def truncated(write):
    def spoil(path):
        write(path)
        path.write_bytes(path.read_bytes()[:-60])

    return spoil


def save_nan(path):
    save_file({"w": np.array([1, np.nan], "float32")}, path)


BAD = {
    "missing": (lambda path: None, "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "web page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "is a web page"),
    "text": (lambda path: path.write_bytes(b"hello, I am a checkpoint"), "is no checkpoint"),
    "old torch": (
        lambda path: path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M"),
        "before 1.6",
    ),
    "code": (paddle_malice, "asks to run posix.system"),
    "torch code": (torch_malice, "asks to run posix.system"),
    "list": (lambda path: path.write_bytes(pickle.dumps([1])), "holds a list"),
    "no tensors": (lambda path: path.write_bytes(pickle.dumps({"epoch": 1})), "holds no tensors"),
    "NaN": (save_nan, "w has NaN"),
    "truncated paddle": (truncated(save_paddle), "damaged"),
    "truncated torch": (truncated(lambda path: FakeTorch(path, TENSORS)), "no checkpoint"),
    "truncated safetensors": (truncated(lambda path: save_file(TENSORS, path)), "damaged"),
    "two candidates": (two_candidates, "model.safetensors and pytorch_model.bin"),
    "empty folder": (lambda path: path.mkdir(), "neither"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources(case, tmp_path, monkeypatch):
    """One sentence that names the file; nothing of it has run."""
    monkeypatch.chdir(tmp_path)
    spoil, message = BAD[case]
    path = tmp_path / "bad.pth"
    spoil(path)
    with pytest.raises(ps.InputError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "executed").exists()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves some bytes; the first answer breaks off half-way."""

    content, requests = b"x" * 100_000, 0

    def do_GET(self):
        Server.requests += 1
        self.send_response(200)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        half = Server.requests == 1
        self.wfile.write(self.content[:50_000] if half else self.content)

    def log_message(self, *_):
        pass


def test_download_is_retried_checked_and_cached(tmp_path, monkeypatch):
    from paddleseg_segformer.weights.download import download

    monkeypatch.setattr(seg_env, "PRETRAINED_MODEL_HOME", str(tmp_path))
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/zoo/b0/model.pdparams?version=2"
    try:
        path = download(url)
        assert download(url) == path == tmp_path / "b0/model.pdparams"
    finally:
        server.shutdown()
    assert Server.requests == 2
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(Server.content).digest()
    assert [p.name for p in path.parent.iterdir()] == ["model.pdparams"]


def test_unreachable_url_says_which_key_to_set(tmp_path, monkeypatch):
    monkeypatch.setattr(seg_env, "PRETRAINED_MODEL_HOME", str(tmp_path))
    with pytest.raises(ps.InputError, match=r"--opts model\.backbone\.pretrained=FILE"):
        ps.MixVisionTransformer_B0(pretrained="http://127.0.0.1:9/weights.tar.gz")
