"""Weights by the name of a Hugging Face repository, from its library's cache or a local server."""

import re
import sys

import numpy as np
import paddle
import pytest
from hub import COMMITS, HubServer, model_files, write_cache
from small_models import small_model

import paddleseg_segformer as ps
from paddleseg_segformer import cli
from paddleseg_segformer.weights import convert_checkpoint, local_path, read_weights
from paddleseg_segformer.weights.checkpoint_io import read_checkpoint

from .test_checkpoint_io import TENSORS, FakeTorch, same
from .test_formats import arrays, random_model

NAME = "nvidia/segformer-b0-finetuned-street"
CLASSES = ["road", "curb", "tree", "sky", "car"]


@pytest.fixture(scope="module")
def model():
    return small_model(len(CLASSES))


@pytest.fixture(scope="module")
def files(model):
    return model_files(model, CLASSES)


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """The folder of huggingface_hub's cache, in its offline mode."""
    reason = "huggingface_hub is not installed"
    constants = pytest.importorskip("huggingface_hub.constants", reason=reason)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return tmp_path / "hub"


@pytest.fixture
def serve(cache, monkeypatch):
    """A function that serves repositories instead of huggingface.co."""
    from huggingface_hub import constants

    servers = []

    def start(repositories):
        servers.append(HubServer(repositories))
        url = servers[0].url
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "ENDPOINT", url)
        template = url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        return servers[0]

    yield start
    for server in servers:
        server.close()


def state_equals(state, expected):
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(state[name], value)


def test_a_cached_repository_is_loaded_offline(cache, files, model):
    write_cache(cache, NAME, files)
    target = small_model(len(CLASSES))
    for tensor in target.state_dict().values():
        tensor.set_value(paddle.zeros_like(tensor))
    result = ps.load_weights(target, NAME)
    assert result.checkpoint.source == NAME and result.checkpoint.format == "huggingface"
    state_equals(arrays(target), arrays(model))


def test_safetensors_is_preferred(cache, files):
    safetensors = {"model.safetensors": files["model.safetensors"]}
    snapshot = write_cache(cache, NAME, {"pytorch_model.bin": b"not read", **safetensors})
    assert local_path(NAME) == snapshot / "model.safetensors"


def test_a_pickle_is_read_by_the_restricted_unpickler(cache, tmp_path):
    FakeTorch(tmp_path / "model", TENSORS)
    content = (tmp_path / "model").read_bytes()
    snapshot = write_cache(cache, NAME, {"pytorch_model.bin": content})
    assert local_path(NAME) == snapshot / "pytorch_model.bin"
    same(read_checkpoint(local_path(NAME)))
    malicious = b"\x80\x02cos\nsystem\nX\4\0\0\0true\x85R."
    write_cache(cache, "nvidia/evil", {"pytorch_model.bin": malicious})
    with pytest.raises(ps.InputError, match=r"pytorch_model\.bin: .*os\.system"):
        read_weights("nvidia/evil")


@pytest.mark.parametrize("revision", ["v1", COMMITS["v1"]])
def test_a_revision(revision, cache, files):
    write_cache(cache, NAME, files)
    old = write_cache(cache, NAME, {"pytorch_model.bin": b""}, "v1")
    assert local_path(f"{NAME}@{revision}") == old / "pytorch_model.bin"


def test_pretrained_keys(cache, model, files):
    """Of a whole model and of a backbone, as in a config."""
    write_cache(cache, NAME, files)
    pretrained = ps.SegFormer(5, ps.MixVisionTransformer_B0(), 32, pretrained=NAME)
    state_equals(arrays(pretrained), arrays(model))
    write_cache(cache, "nvidia/mit-b0", files)
    state_equals(
        arrays(ps.MixVisionTransformer_B0(pretrained="nvidia/mit-b0")), arrays(model.backbone)
    )


def test_prediction_needs_no_config(cache, files, model):
    """The architecture comes from the weights, and the class names from config.json."""
    write_cache(cache, NAME, files)
    image = np.random.default_rng(0).integers(0, 255, [64, 96, 3]).astype("uint8")
    predictor = ps.Predictor(NAME, device="cpu")
    assert predictor.classes == CLASSES
    x = (image / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    with paddle.no_grad():
        # Hugging Face's LayerNorm epsilon
        backbone = ps.MixVisionTransformer_B0(norm_epsilon=1e-5)
        reference = ps.SegFormer(5, backbone, 32)
        reference.set_state_dict(model.state_dict())
        reference.eval()
        logits = reference(paddle.to_tensor(x.transpose(2, 0, 1)[None].astype("float32")))[0]
    expected = logits.numpy()[0].argmax(axis=0)
    assert len(np.unique(expected)) > 2
    assert (predictor(image).label_map == expected).mean() > 0.999


def test_conversion_and_a_config(cache, files, model, tmp_path):
    write_cache(cache, NAME, files)
    convert_checkpoint(NAME, tmp_path / "model.safetensors")
    state_equals(read_weights(tmp_path / "model.safetensors").state, arrays(model))
    classes = [str(index) for index in range(150)]
    full = random_model("B0", "linear", 150)
    write_cache(cache, "nvidia/ade", model_files(full, classes))
    config = "configs/segformer_mit-b0_512x512_160k_ade20k.yaml"
    predictor = ps.Predictor("nvidia/ade", config=config, device="cpu")
    state_equals(arrays(predictor.segmenter.model), arrays(full))


def test_a_url_with_a_config(tmp_path, monkeypatch):
    monkeypatch.setattr("paddleseg.utils.seg_env.PRETRAINED_MODEL_HOME", str(tmp_path))
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    model = random_model("B0", "linear", 150)
    server = HubServer({NAME: model_files(model, [str(index) for index in range(150)])})
    url = f"{server.url}/{NAME}/resolve/main/model.safetensors"
    config = "configs/segformer_mit-b0_512x512_160k_ade20k.yaml"
    predictor = ps.Predictor(url, config=config, device="cpu")
    server.close()
    state_equals(arrays(predictor.segmenter.model), arrays(model))


def test_a_local_folder_of_that_name_comes_first(files, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    (tmp_path / NAME).mkdir(parents=True)
    for file, content in files.items():
        (tmp_path / NAME / file).write_bytes(content)
    assert ps.Predictor(NAME, device="cpu").classes == CLASSES
    (tmp_path / "nvidia/file").write_bytes(files["model.safetensors"])
    assert read_weights("nvidia/file").architecture.num_classes == len(CLASSES)


@pytest.mark.parametrize("path", ["a/m.pdparams", "a/b/c", "./a/b", "../a", "/a/b", "a", "a/b@"])
def test_other_missing_paths_are_no_repositories(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(ps.InputError, match=re.escape("No such file or directory")):
        read_weights(path)


def test_a_name_that_hugging_face_does_not_allow(cache):
    with pytest.raises(ps.InputError, match=re.escape("No such file or directory")):
        read_weights("output/best--model")


def test_the_library_is_optional(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["segformer", "convert", "nvidia/mit-b0", "mit.pdparams"])
    with pytest.raises(SystemExit) as raised:
        cli.main()
    (line,) = capsys.readouterr().err.splitlines()
    assert raised.value.code == 2
    assert line.startswith("error: nvidia/mit-b0: no such file or folder;")
    assert line.endswith("pip install huggingface_hub.")


def test_offline_and_not_in_the_cache(cache):
    with pytest.raises(ps.InputError, match=r"^nvidia/mit-b0: no such file .*offline.*\.$"):
        read_weights("nvidia/mit-b0")


def test_download_into_the_cache(serve, cache, files, monkeypatch):
    """Both files are requested once, and then the commit's folder serves offline."""
    bin_files = {"pytorch_model.bin": files["model.safetensors"]}
    bin_files["config.json"] = files["config.json"]
    hub = serve({NAME: bin_files})
    path = local_path(NAME)
    assert path.name == "pytorch_model.bin" and cache in path.parents
    assert {file.name: file.read_bytes() for file in path.parent.iterdir()} == bin_files
    assert [request for request in hub.requests if request.startswith("GET")] == [
        f"GET /{NAME}/resolve/main/pytorch_model.bin",
        f"GET /{NAME}/resolve/{COMMITS['main']}/config.json",
    ]
    downloads = len(hub.requests)
    assert local_path(NAME) == path
    assert not [request for request in hub.requests[downloads:] if request.startswith("GET")]
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert local_path(NAME) == path


def test_a_repository_without_config(serve):
    serve({NAME: {"model.safetensors": b"weights"}})
    assert local_path(f"{NAME}@v1").read_bytes() == b"weights"


@pytest.mark.parametrize(
    "files, revision, message",
    [
        (
            "RepoNotFound",
            "",
            "no such repository on Hugging Face; correct the name, or set HF_TOKEN",
        ),
        ("GatedRepo", "", f"is gated; accept its terms on https://huggingface.co/{NAME}"),
        ({"model.safetensors": b""}, "@v7", "the Hugging Face repository has no revision v7;"),
        ({"tf_model.h5": b""}, "", "has no model.safetensors and no pytorch_model.bin;"),
    ],
    ids=["no repository", "gated", "no revision", "no weights"],
)
def test_errors_of_hugging_face(files, revision, message, serve):
    serve({NAME: files})
    with pytest.raises(ps.InputError, match=re.escape(message)) as raised:
        read_weights(NAME + revision)
    assert str(raised.value).startswith(f"{NAME}{revision}: ") and "\n" not in str(raised.value)


def test_any_other_error_of_the_library(cache, monkeypatch):
    def fail(*_, **__):
        raise RuntimeError("the connection was\nreset")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", fail)
    with pytest.raises(ps.InputError, match=r"\(the connection was reset\); repeat the command"):
        read_weights(NAME)
