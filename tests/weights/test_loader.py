"""Loading our own checkpoints, and refusing what is not one."""

import os
import pickle

import numpy as np
import paddle
import pytest

import paddleseg_segformer as ps


def model(classes=5):
    return ps.SegFormer(classes, ps.MixVisionTransformer_B0(), 32)


def arrays(layer):
    return {name: value.numpy() for name, value in layer.state_dict().items()}


def assert_same(layer, expected):
    for name, value in layer.state_dict().items():
        np.testing.assert_array_equal(value.numpy(), expected[name], err_msg=name)


def test_file_of_a_whole_model(tmp_path):
    source, target = model(), model()
    paddle.save(source.state_dict(), str(tmp_path / "model.pdparams"))
    result = ps.load_weights(target, tmp_path / "model.pdparams")
    assert not result.missing and not result.unexpected
    assert_same(target, arrays(source))


def test_backbone_into_whole_model_and_back():
    backbone, whole = ps.MixVisionTransformer_B0(), model()
    head_before = {k: v for k, v in arrays(whole).items() if not k.startswith("backbone.")}
    result = ps.load_weights(whole, {**arrays(backbone), "head.weight": np.zeros([4, 4])})
    assert set(result.missing) == head_before.keys()
    assert result.unexpected == ["head.weight"]
    assert_same(whole.backbone, arrays(backbone))
    assert all((arrays(whole)[k] == v).all() for k, v in head_before.items())
    other = ps.MixVisionTransformer_B0()
    ps.load_weights(other, arrays(whole))
    assert_same(other, arrays(backbone))


def test_other_number_of_classes_keeps_the_new_classifier():
    source, target = model(classes=7), model(classes=5)
    classifier = arrays(target)["linear_pred.weight"]
    result = ps.load_weights(target, arrays(source))
    assert result.missing == ["linear_pred.weight", "linear_pred.bias"]
    assert_same(target.backbone, {k[9:]: v for k, v in arrays(source).items()})
    np.testing.assert_array_equal(arrays(target)["linear_pred.weight"], classifier)


def test_other_architecture_is_refused():
    before = arrays(target := model())
    with pytest.raises(ps.InputError, match="does not fit the model"):
        ps.load_weights(target, arrays(ps.MixVisionTransformer_B1()))
    assert_same(target, before)


class Malice:
    def __reduce__(self):
        return os.mkdir, ("executed",)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "damaged"),
        (b"<!DOCTYPE html><html>404</html>", "damaged"),
        (pickle.dumps({"a": Malice()}), "asks to run posix.mkdir|asks to run nt.mkdir"),
        (pickle.dumps([1, 2]), "holds a list"),
        (pickle.dumps({"a": np.zeros(1000)})[:-300], "damaged"),
    ],
    ids=["empty", "html", "code", "list", "truncated"],
)
def test_bad_files_are_named_and_never_run(tmp_path, monkeypatch, content, message):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "bad.pdparams"
    path.write_bytes(content)
    with pytest.raises(ps.InputError, match=message) as caught:
        ps.load_weights(model(), path)
    assert str(path) in str(caught.value) and "\n" not in str(caught.value)
    assert not (tmp_path / "executed").exists()


def test_missing_file():
    with pytest.raises(ps.InputError, match=r"nowhere\.pdparams"):
        ps.load_weights(model(), "nowhere.pdparams")


def test_unreachable_url_says_which_key_to_set():
    with pytest.raises(ps.InputError, match=r"model\.backbone\.pretrained"):
        ps.MixVisionTransformer_B0(pretrained="http://127.0.0.1:9/weights.tar.gz")
