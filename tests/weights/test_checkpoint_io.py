"""Checkpoint files are read without their framework, and code in them is never run."""

import hashlib
import http.server
import io
import os
import pickle
import tarfile
import threading
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import paddle
import pytest
from paddleseg.utils import seg_env
from safetensors.numpy import save_file

import paddleseg_segformer as ps
from paddleseg_segformer.weights import download as download_module
from paddleseg_segformer.weights import unpickle as unpickle_module
from paddleseg_segformer.weights.checkpoint_io import (
    extract_tensors,
    read_checkpoint,
    read_saved_dict,
)

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
    assert read_saved_dict(tmp_path / "model.pdparams").keys() == TENSORS.keys()


@pytest.mark.parametrize("protocol", [2, 4])
def test_plain_pickles_of_arrays(tmp_path, protocol):
    (tmp_path / "old.pdparams").write_bytes(pickle.dumps(OrderedDict(TENSORS), protocol))
    same(read_checkpoint(tmp_path / "old.pdparams"))


def test_nested_state_of_an_optimizer(tmp_path):
    state = {"w_moment1_0": paddle.ones([2]), "master_weights": {"w": paddle.zeros([3])}}
    paddle.save({**state, "LR_Scheduler": {"last_epoch": 4, "last_lr": 0.5}}, str(tmp_path / "o"))
    read = read_saved_dict(tmp_path / "o")
    assert read["LR_Scheduler"] == {"last_epoch": 4, "last_lr": 0.5}
    assert any(np.array_equal(part, [0, 0, 0]) for part in read["master_weights"]["w"])


def test_an_archive_with_a_folder_named_like_weights(tmp_path):
    save_paddle(tmp_path / "model.pdparams")
    with tarfile.open(tmp_path / "a.tar.gz", "w:gz") as archive:
        folder = tarfile.TarInfo("weights.pdparams")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        archive.add(tmp_path / "model.pdparams", "weights.pdparams/model.pdparams")
    same(read_checkpoint(tmp_path / "a.tar.gz"))


def test_a_training_log_holds_no_tensors(tmp_path):
    """And is not called by the name of what replaces it."""
    log = b"\x80\x04cmmengine.logging.history_buffer\nHistoryBuffer\n."
    (tmp_path / "a.pdparams").write_bytes(log)
    with pytest.raises(ps.InputError, match=r"holds no tensors, not a dictionary of tensors\.$"):
        read_checkpoint(tmp_path / "a.pdparams")


def test_archive(tmp_path):
    save_paddle(tmp_path / "model.pdparams")
    with tarfile.open(tmp_path / "backbone.tar.gz", "w:gz") as archive:
        archive.add(tmp_path / "model.pdparams", "mix_vision_transformer_b0/model.pdparams")
    same(read_checkpoint(tmp_path / "backbone.tar.gz"))


def test_safetensors_and_folder(tmp_path):
    save_file(TENSORS, tmp_path / "model.safetensors")
    same(read_checkpoint(tmp_path / "model.safetensors"))
    same(read_checkpoint(tmp_path))


def test_a_folder_of_paddleseg_gives_the_model_before_its_average(tmp_path):
    average = {"a.weight": np.zeros([3, 4], "float32")}
    (tmp_path / "ema_model.pdparams").write_bytes(pickle.dumps(average))
    same(read_checkpoint(tmp_path), average)
    save_paddle(tmp_path / "model.pdparams")
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
    """The pickle that PyTorch writes, from protocol 0's text opcodes."""

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


def forged(path, size=(4,), stride=(1,), offset=0):
    """A PyTorch file with one tensor, which is this view of a storage of four numbers."""
    item = _TorchPickle({}).item
    storage = b"(" + item("storage") + b"ctorch\nFloatStorage\n" + item("x") + item("cpu")
    storage += item(4) + b"tQ"
    rest = item(offset) + item(size) + item(stride) + b"\x89}"
    tensor = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", b"\x80\x02}(" + item("x") + tensor + b"u.")
        archive.writestr("archive/data/x", np.arange(4, dtype="float32").tobytes())


VIEWS = {
    "too long": {"size": (5,)},
    "too far": {"offset": 1},
    "one number beyond": {"offset": 4, "size": (1,)},
    "negative": {"offset": -1, "size": (2,)},
    "repeated": {"size": (1000000, 1000000), "stride": (0, 0)},
    "other rank": {"stride": (1, 1)},
}


@pytest.mark.parametrize("view", VIEWS)
def test_torch_tensor_outside_its_storage(view, tmp_path):
    """A view outside its storage must not read other memory, nor allocate much."""
    forged(tmp_path / "m.pth")
    assert read_checkpoint(tmp_path / "m.pth")["x"].tolist() == [0, 1, 2, 3]
    forged(tmp_path / "m.pth", **VIEWS[view])
    with pytest.raises(ps.InputError, match=r"m\.pth: is not a checkpoint, or is damaged"):
        read_checkpoint(tmp_path / "m.pth")


def call(module, name, arguments):
    """Opcodes that call a function with a tuple of opcodes."""
    return f"c{module}\n{name}\n".encode() + b"(" + b"".join(arguments) + b"tR"


TEXT = _TorchPickle({}).item
OBJECTS = call("numpy", "dtype", [TEXT("O8"), b"\x89", b"\x88"])
FLOATS = call("numpy", "dtype", [TEXT("f4"), b"\x89", b"\x88"])
EMPTY = call("numpy.core.multiarray", "_reconstruct", [b"cnumpy\nndarray\n", b"(K\0t", b"C\x01b"])
ATTACKS = {
    "array of pointers": OBJECTS,
    "array made directly": call("numpy", "ndarray", [b"(K\x63t", TEXT("u1")]) + b"(K\1tb",
    "array larger than its data": EMPTY + b"(K\1(K\x40t" + FLOATS + b"\x89C\x04abcdtb",
    "function with other defaults": b"cnumpy\ndtype\nN}(" + TEXT("__defaults__") + b"NuN\x86b",
    "key that never hashes": b"}(((tttK\1u",
    "memo of gigabytes": b"}r\x00\x84\xd7\x17",
    "set": b"\x8f",
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_forged_pickles(attack, tmp_path):
    """Each made the standard unpickler read foreign memory, allocate gigabytes or hang."""
    path = tmp_path / "m.pdparams"
    path.write_bytes(b"\x80\x04}(" + TEXT("x") + ATTACKS[attack] + b"u.")
    with pytest.raises(ps.InputError, match=r"m\.pdparams: "):
        read_checkpoint(path)


def test_control_characters_are_escaped_in_errors(tmp_path):
    (tmp_path / "m.pdparams").write_bytes(b"\x80\x04c\x1b[2J\nname\r\n.")
    with pytest.raises(ps.InputError) as caught:
        read_checkpoint(tmp_path / "m.pdparams")
    assert str(caught.value).isprintable() and r"\x1b[2J.name\r" in str(caught.value)


def test_bfloat16_of_paddle(tmp_path):
    """Paddle saves bfloat16 as uint16."""
    model = ps.MixVisionTransformer_B0()
    state = {name: value.astype("bfloat16") for name, value in model.state_dict().items()}
    paddle.save(state, str(tmp_path / "m.pdparams"))
    other = ps.MixVisionTransformer_B0()
    ps.load_weights(other, tmp_path / "m.pdparams")
    for name, value in other.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), state[name].astype("float32").numpy())


@pytest.mark.parametrize("wrapper", ["state_dict", "model_state_dict", "model"])
def test_nested_paddle_state(tmp_path, wrapper):
    tensors = {name: paddle.to_tensor(value) for name, value in TENSORS.items()}
    paddle.save({wrapper: tensors, "epoch": 3}, str(tmp_path / "m.pdparams"))
    same(read_checkpoint(tmp_path / "m.pdparams"))


def test_real_torch(tmp_path):
    torch = pytest.importorskip("torch", reason="PyTorch is not installed")
    layer = torch.nn.Linear(3, 4)
    view = torch.arange(12.0).reshape(3, 4)[1:, ::2].t()
    state = {**layer.state_dict(), "view": view, "p": layer.weight, "i": torch.tensor(3)}
    for kind in ("double", "float", "half", "long", "int", "short", "char", "byte", "bool"):
        state[kind] = getattr(torch.arange(-2, 3), kind)()
    meta = {"size": torch.Size([2]), "device": torch.device("cpu")}
    names = ("float16", "bfloat16", "bool", "uint8", "int8", "int64")
    meta["types"] = [getattr(torch, name) for name in names]
    torch.save({"meta": meta, "state_dict": state}, tmp_path / "model.pth")
    actual = read_checkpoint(tmp_path / "model.pth")
    for name, value in state.items():
        assert actual[name].dtype == value.detach().numpy().dtype
        np.testing.assert_array_equal(actual[name], value.detach().numpy())


class RunsCode:
    def __reduce__(self):
        return os.system, ("touch executed",)


def paddle_code(path):
    path.write_bytes(pickle.dumps({"a": RunsCode()}))


def torch_code(path):
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"a": RunsCode()}, 2))


def two_candidates(path):
    path.mkdir()
    save_file(TENSORS, path / "model.safetensors")
    (path / "pytorch_model.bin").write_bytes(b"")


def truncated(write):
    def damage(path):
        write(path)
        path.write_bytes(path.read_bytes()[:-60])

    return damage


BAD = {
    "missing": (lambda path: None, "cannot be read"),
    "empty": (lambda path: path.write_bytes(b""), "is empty"),
    "web page": (lambda path: path.write_bytes(b"\n<!DOCTYPE html><html>"), "is a web page"),
    "text": (lambda path: path.write_bytes(b"hello, I am a checkpoint"), "is not a checkpoint"),
    "old torch": (
        lambda path: path.write_bytes(b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.\x80\x02M"),
        "before 1.6",
    ),
    "code": (paddle_code, "asks to run posix.system"),
    "torch code": (torch_code, "asks to run posix.system"),
    "list": (lambda path: path.write_bytes(pickle.dumps([1])), "holds a list"),
    "no tensors": (
        lambda path: path.write_bytes(pickle.dumps({"epoch": 1, "net": {}})),
        "holds no tensors; its first keys are epoch, net.",
    ),
    "truncated paddle": (truncated(save_paddle), "damaged"),
    "truncated torch": (truncated(lambda path: FakeTorch(path, TENSORS)), "not a checkpoint"),
    "truncated safetensors": (truncated(lambda path: save_file(TENSORS, path)), "damaged"),
    "two candidates": (two_candidates, "model.safetensors and pytorch_model.bin"),
    "empty folder": (lambda path: path.mkdir(), "holds none of model.pdparams"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_sources(case, tmp_path, monkeypatch):
    """The error is one sentence that names the file; nothing is run."""
    monkeypatch.chdir(tmp_path)
    damage, message = BAD[case]
    path = tmp_path / "bad.pth"
    damage(path)
    with pytest.raises(ps.InputError) as caught:
        read_checkpoint(path)
    assert str(caught.value).startswith(str(path)) and message in str(caught.value)
    assert "\n" not in str(caught.value) and not (tmp_path / "executed").exists()


class Server(http.server.BaseHTTPRequestHandler):
    """Serves some bytes; the first response ends half-way."""

    content, status, requests = b"x" * 100_000, 200, 0

    def do_GET(self):
        Server.requests += 1
        self.send_response(self.status)
        self.send_header("Content-Length", str(len(self.content)))
        self.end_headers()
        half = Server.requests == 1
        self.wfile.write(self.content[:50_000] if half else self.content)

    def log_message(self, *_):
        pass


@pytest.fixture
def served(tmp_path, monkeypatch):
    """A URL, whose download goes to a folder that does not exist yet."""
    monkeypatch.setattr(seg_env, "PRETRAINED_MODEL_HOME", str(tmp_path / "home" / "models"))
    monkeypatch.setattr(Server, "requests", 0)
    server = http.server.HTTPServer(("127.0.0.1", 0), Server)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}/zoo/b0/model.pdparams?version=2"
    server.shutdown()


def test_download_is_retried_checked_and_cached(served, tmp_path):
    path = download_module.download(served)
    assert download_module.download(served) == path and tmp_path in path.parents
    assert Server.requests == 2
    assert hashlib.sha256(path.read_bytes()).digest() == hashlib.sha256(Server.content).digest()
    assert [p.name for p in path.parent.iterdir()] == ["model.pdparams"]


@pytest.mark.parametrize(
    "status, content, requests, message",
    [
        (404, b"", 1, "Error 404"),
        (503, b"", 3, "Error 503"),
        (200, b"\n<html>Log in</html>", 1, "the response is a web page"),
    ],
)
def test_only_server_errors_are_retried(
    status, content, requests, message, served, tmp_path, monkeypatch
):
    waits = []
    monkeypatch.setattr(
        download_module.time, "sleep", lambda seconds: waits.append((Server.requests, seconds))
    )
    monkeypatch.setattr(Server, "status", status)
    monkeypatch.setattr(Server, "content", content)
    with pytest.raises(ps.InputError, match=f"cannot be downloaded .*{message}"):
        download_module.download(served)
    assert Server.requests == requests
    assert [wait for wait in waits if wait[1]] == [(n, n) for n in range(1, requests)]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize(
    "one, other",
    [
        ("http://127.0.0.1:9/b0/main/m.bin", "http://127.0.0.1:9/b1/main/m.bin"),
        ("http://127.0.0.1:9/d?id=1", "http://127.0.0.1:9/d?id=2"),
    ],
)
def test_urls_do_not_share_a_file(one, other, tmp_path, monkeypatch):
    monkeypatch.setattr(seg_env, "PRETRAINED_MODEL_HOME", str(tmp_path))
    monkeypatch.setattr(download_module, "_fetch", lambda url, path: path.write_text(url))
    for url in (one, other, "http://127.0.0.1:9/%2e%2e/%2e%2e/evil"):
        path = download_module.download(url)
        assert path.read_text() == url and path.parent.parent == tmp_path


def test_an_unreachable_url_names_the_key_to_set(tmp_path, monkeypatch):
    """After three attempts, with longer and longer pauses between them."""
    monkeypatch.setattr(seg_env, "PRETRAINED_MODEL_HOME", str(tmp_path))
    pauses = []
    monkeypatch.setattr(download_module.time, "sleep", pauses.append)
    with pytest.raises(ps.InputError, match=r"--opts model\.backbone\.pretrained=FILE"):
        ps.MixVisionTransformer_B0(pretrained="http://127.0.0.1:9/weights.tar.gz")
    assert pauses == [0, 1, 2]


@pytest.mark.parametrize("kind, multiple", [("torch", 5), ("paddle", 2)])
def test_what_bfloat16_is_charged(kind, multiple, tmp_path, monkeypatch):
    """PyTorch's: the file, a float32 copy of twice the size, and the tensor. Paddle's: a copy."""
    sizes, charge = [], unpickle_module.Budget.charge

    def record(self, operations=0, size=0):
        sizes.append(size)
        charge(self, operations, size)

    monkeypatch.setattr(unpickle_module.Budget, "charge", record)
    path, bits = tmp_path / "a", np.arange(50_000, dtype="uint16")
    if kind == "torch":
        FakeTorch(path, {"x": bits})
    else:
        path.write_bytes(pickle.dumps({"x": bits}, protocol=4))
    read_checkpoint(path)
    assert sum(sizes) == pytest.approx(multiple * bits.nbytes, rel=0.01)


def test_names_and_numbers_of_tensors_are_limited(tmp_path):
    path, array = tmp_path / "a.pdparams", TENSORS["b"]
    for length, expected in ((1001, "a name has 1001 characters"), (1000, None)):
        path.write_bytes(pickle.dumps({"n" * length: array}, protocol=4))
        if expected is None:
            assert list(read_checkpoint(path)) == ["n" * length]
        else:
            with pytest.raises(ps.InputError, match=expected):
                read_checkpoint(path)
    with pytest.raises(ps.InputError, match=r"a: holds n+…, a name of 1,001 characters"):
        extract_tensors({"n" * 1001: array}, "a")
    with pytest.raises(ps.InputError, match=r"a: holds more than 100,000 tensors"):
        extract_tensors(dict.fromkeys(map(str, range(100_001)), array), "a")


def test_a_pipe_is_no_checkpoint(tmp_path):
    """Reading one would wait for a writer; a device such as /dev/zero never ends."""
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/full"):
        with pytest.raises(ps.InputError, match=rf"{path}: cannot be read \(not a file\)"):
            read_checkpoint(path)


def test_a_small_file_takes_little_memory(tmp_path):
    text = b"x" * 100_000
    once = b"c_codecs\nencode\nq\1X" + len(text).to_bytes(4, "little") + text
    pickled = b"\x80\x02}(X\1\0\0\0a](" + once + b"X\6\0\0\0latin1\x86q\2R"
    (tmp_path / "often.pdparams").write_bytes(pickled + b"h\1h\2R" * 5000 + b"eu.")
    with tarfile.open(tmp_path / "bomb.tar.gz", "w:gz") as archive:
        member = tarfile.TarInfo("model.pdparams")
        member.size = 64 << 20
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    for name in ("often.pdparams", "bomb.tar.gz"):
        tracemalloc.start()
        with pytest.raises(ps.InputError, match=rf"{name}: .*download it again"):
            read_checkpoint(tmp_path / name)
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert most < 5e6
