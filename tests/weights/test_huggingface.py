"""Files that Hugging Face transformers itself writes, and the logits that it computes."""

import numpy as np
import paddle
import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.models import VARIANTS

torch = pytest.importorskip("torch", reason="PyTorch is not installed")
transformers = pytest.importorskip("transformers", reason="transformers is not installed")


def their_model(size, kind="SegformerForSemanticSegmentation"):
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
    theirs = their_model(size)
    if kind == "safetensors":
        theirs.save_pretrained(tmp_path)
        source = tmp_path
    else:
        source = tmp_path / "pytorch_model.bin"
        torch.save(theirs.state_dict(), source)
    backbone = getattr(ps, f"MixVisionTransformer_{size}")(norm_epsilon=1e-5)
    ours = ps.SegFormer(19, backbone)
    result = ps.load_weights(ours, source)
    assert not result.missing and not result.unexpected
    ours.eval()
    images = np.random.default_rng(0).normal(size=[1, 3, 96, 128]).astype("float32")
    with torch.no_grad(), paddle.no_grad():
        expected = theirs(torch.from_numpy(images)).logits.numpy()
        actual = ours.decode(ours.backbone(paddle.to_tensor(images))).numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)


def test_image_classification(tmp_path):
    """ImageNet models give their encoder."""
    theirs = their_model("B0", "SegformerForImageClassification")
    theirs.save_pretrained(tmp_path)
    ours = ps.MixVisionTransformer_B0(norm_epsilon=1e-5)
    result = ps.load_weights(ours, tmp_path)
    assert not result.missing and not result.unexpected
    ours.eval()
    images = np.random.default_rng(0).normal(size=[1, 3, 64, 96]).astype("float32")
    with torch.no_grad(), paddle.no_grad():
        expected = theirs.segformer(torch.from_numpy(images)).last_hidden_state.numpy()
        actual = ours(paddle.to_tensor(images))[3].numpy()
    np.testing.assert_allclose(actual, expected, atol=1e-4)
