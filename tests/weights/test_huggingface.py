"""Files that transformers writes give the logits that transformers computes."""

import numpy as np
import paddle
import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.models import VARIANTS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def huggingface_model(size, kind="SegformerForSemanticSegmentation"):
    """A model with random weights and BatchNorm statistics."""
    torch.manual_seed(0)
    variant = VARIANTS[size]
    config = transformers.SegformerConfig(
        hidden_sizes=list(variant.embed_dims),
        depths=list(variant.depths),
        decoder_hidden_size=variant.decoder_width,
        num_labels=19,
    )
    model = getattr(transformers, kind)(config).eval()
    with torch.no_grad():
        for name, tensor in model.state_dict().items():
            if tensor.is_floating_point():
                tensor += 0.05 * torch.randn(tensor.shape)
            if name.endswith("running_var"):
                tensor.abs_().add_(0.5)
    return model


@pytest.mark.parametrize("kind", ["safetensors", "bin"])
@pytest.mark.parametrize("size", ["B0", "B1", "B2"])
def test_segmentation(size, kind, tmp_path):
    reference = huggingface_model(size)
    if kind == "safetensors":
        reference.save_pretrained(tmp_path)
        source = tmp_path
    else:
        source = tmp_path / "pytorch_model.bin"
        torch.save(reference.state_dict(), source)
    backbone = getattr(ps, f"MixVisionTransformer_{size}")(norm_epsilon=1e-5)
    model = ps.SegFormer(19, backbone)
    result = ps.load_weights(model, source)
    assert not result.missing and not result.unexpected
    model.eval()
    images = np.random.default_rng(0).normal(size=[1, 3, 96, 128]).astype("float32")
    with torch.no_grad(), paddle.no_grad():
        expected = reference(torch.from_numpy(images)).logits.numpy()
        actual = model.decode(model.backbone(paddle.to_tensor(images))).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_image_classification(tmp_path):
    """An ImageNet classifier loads into a backbone."""
    reference = huggingface_model("B0", "SegformerForImageClassification")
    reference.save_pretrained(tmp_path)
    model = ps.MixVisionTransformer_B0(norm_epsilon=1e-5)
    result = ps.load_weights(model, tmp_path)
    assert not result.missing and not result.unexpected
    model.eval()
    images = np.random.default_rng(0).normal(size=[1, 3, 64, 96]).astype("float32")
    with torch.no_grad(), paddle.no_grad():
        expected = reference.segformer(torch.from_numpy(images)).last_hidden_state.numpy()
        actual = model(paddle.to_tensor(images))[3].numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)
