"""The architecture and the layers that are inferred from state dicts."""

import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.weights.architecture import infer_architecture, missing_layers

MODELS = {
    "linear": lambda: ps.SegFormer(3, ps.MixVisionTransformer_B0(), 8),
    "conv_bn_relu": lambda: ps.SegFormer(3, ps.MixVisionTransformer_B1(), 8, "conv_bn_relu"),
    "backbone": ps.MixVisionTransformer_B0,
}


@pytest.mark.parametrize("kind", MODELS)
def test_missing_layers_are_all_weights_of_a_model(kind):
    state = MODELS[kind]().state_dict()
    architecture = infer_architecture(state)
    assert not missing_layers(architecture, state)
    layers = [name[: -len(".weight")] for name in state if name.endswith(".weight")]
    assert sorted(missing_layers(architecture, {})) == sorted(layers)


def test_description():
    assert str(infer_architecture(MODELS["backbone"]().state_dict())) == "MiT-B0 (backbone)"
    assert str(infer_architecture(MODELS["conv_bn_relu"]().state_dict())) == (
        "SegFormer with MiT-B1, embedding_dim 8, stage_projection 'conv_bn_relu', 3 classes"
    )
    other = ps.MixVisionTransformer_B0(depths=[1, 2, 2, 1]).state_dict()
    assert str(infer_architecture(other)) == "MiT (32, 64, 160, 256), (1, 2, 2, 1) (backbone)"
    assert infer_architecture({n: v for n, v in other.items() if "block2" not in n}) is None
    assert infer_architecture({n: v for n, v in other.items() if "patch_embed4" not in n}) is None
