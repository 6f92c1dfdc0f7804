"""State dicts in each of the source formats, converted from PaddleSeg's.

These conversions are independent of the package's, and in the opposite direction. tests/weights
compares their names and shapes with the published ones in ``shared/reference/state_dicts``.
"""

import re

import numpy as np

BN = {"_mean": "running_mean", "_variance": "running_var"}


def torch_layout(state):
    return {k: v.T.copy() if v.ndim == 2 else v for k, v in state.items()}


def with_counts(state):
    """Add the buffer ``num_batches_tracked`` of PyTorch's BatchNorm."""
    for name in [name for name in state if name.endswith("running_mean")]:
        state[name.replace("running_mean", "num_batches_tracked")] = np.array(7)
    return state


def nvlabs(ours, classes):
    state = {}
    for name, value in torch_layout(ours).items():
        if not name.startswith("backbone."):
            name = name.replace("_conv.", "conv.").replace("_batch_norm.", "bn.")
            name = "decode_head." + re.sub(r"_mean$|_variance$", lambda m: BN[m[0]], name)
        state[name] = value
    state["decode_head.conv_seg.weight"] = np.ones([classes, 128, 1, 1], "float32")
    state["decode_head.conv_seg.bias"] = np.ones([classes], "float32")
    return with_counts(state)


def huggingface(ours, classes):
    state = {}
    for name, value in torch_layout(ours).items():
        parts = name.split(".")
        if parts[0] != "backbone":
            new = {"linear_pred": "classifier", "linear_fuse": "linear_fuse"}.get(parts[0])
            if parts[0].startswith("linear_c"):
                new = f"linear_c.{int(parts[0][-1]) - 1}.proj"
            elif parts[1] == "_batch_norm":
                new = "batch_norm"
            state[f"decode_head.{new}.{BN.get(parts[-1], parts[-1])}"] = value
            continue
        stage = int(re.search(r"\d", parts[1])[0]) - 1
        root = "segformer.encoder."
        if parts[1].startswith("patch_embed"):
            middle = {"proj": "proj", "norm": "layer_norm"}[parts[2]]
            state[f"{root}patch_embeddings.{stage}.{middle}.{parts[-1]}"] = value
        elif parts[1].startswith("norm"):
            state[f"{root}layer_norm.{stage}.{parts[-1]}"] = value
        else:
            block, layer = f"{root}block.{stage}.{parts[2]}.", ".".join(parts[3:-1])
            if layer == "attn.kv":
                key, val = np.split(value, 2)
                state[f"{block}attention.self.key.{parts[-1]}"] = key
                state[f"{block}attention.self.value.{parts[-1]}"] = val
                continue
            layer = {
                "norm1": "layer_norm_1",
                "norm2": "layer_norm_2",
                "attn.q": "attention.self.query",
                "attn.sr": "attention.self.sr",
                "attn.norm": "attention.self.layer_norm",
                "attn.proj": "attention.output.dense",
                "mlp.fc1": "mlp.dense1",
                "mlp.fc2": "mlp.dense2",
                "mlp.dwconv.dwconv": "mlp.dwconv.dwconv",
            }[layer]
            state[f"{block}{layer}.{parts[-1]}"] = value
    return with_counts(state)


HUGGINGFACE_5 = (
    (r"encoder\.(patch_embeddings|layer_norm)\.(\d)\.", r"stages.\2.\1."),
    (r"encoder\.block\.(\d)\.", r"stages.\1.blocks."),
    (r"self\.query\.", "q_proj."),
    (r"self\.key\.", "k_proj."),
    (r"self\.value\.", "v_proj."),
    (r"self\.sr\.", "sequence_reduction.sequence_reduction."),
    (r"self\.layer_norm\.", "sequence_reduction.layer_norm."),
    (r"output\.dense\.", "o_proj."),
    (r"\.layer_norm_1\.", ".layernorm_before."),
    (r"\.layer_norm_2\.", ".layernorm_after."),
    (r"\.mlp\.dense", ".mlp.fc"),
    (r"\.linear_c\.", ".linear_projections."),
)


def huggingface_5(ours, classes):
    """The names of the model's own state dict in transformers 5."""
    state = huggingface(ours, classes)
    for old, new in HUGGINGFACE_5:
        state = {re.sub(old, new, name): value for name, value in state.items()}
    return state


def _openmmlab(ours, layers):
    """Shared by mmsegmentation and PaddleViT; ``layers`` renames the layers of a block."""
    state = {}
    for name, value in ours.items():
        parts = name.split(".")
        if parts[0] == "backbone":
            stage = int(re.search(r"\d", parts[1])[0]) - 1
            if parts[1].startswith("patch_embed"):
                middle = {"proj": "0.projection", "norm": "0.norm"}[parts[2]]
            elif parts[1].startswith("norm"):
                middle = "2"
            else:
                layer = ".".join(parts[3:-1])
                if layer in ("mlp.fc1", "mlp.fc2") and value.ndim == 2:
                    value = value[:, :, None, None]
                middle = f"1.{parts[2]}.{layers.get(layer, layer)}"
            name = f"backbone.layers.{stage}.{middle}.{parts[-1]}"
        elif parts[0] == "linear_pred":
            name = f"decode_head.conv_seg.{parts[-1]}"
        else:
            part = "fusion_conv" if parts[0] == "linear_fuse" else f"convs.{int(parts[0][-1]) - 1}"
            kind = {"_conv": "conv", "_batch_norm": "bn"}[parts[1]]
            name = f"decode_head.{part}.{kind}.{parts[-1]}"
        state[name] = value
    return state


def mmseg(ours, classes):
    layers = {
        "attn.proj": "attn.attn.out_proj",
        "mlp.fc1": "ffn.layers.0",
        "mlp.dwconv.dwconv": "ffn.layers.1",
        "mlp.fc2": "ffn.layers.4",
    }
    state = {}
    for name, value in _openmmlab(torch_layout(ours), layers).items():
        if ".attn.q." in name:
            joined = np.concatenate([value, torch_layout(ours)[_kv_of(name)]])
            name, value = name.replace(".attn.q.", ".attn.attn.in_proj_"), joined
        elif ".attn.kv." in name:
            continue
        state[re.sub(r"_mean$|_variance$", lambda m: BN[m[0]], name)] = value
    return with_counts(state)


def _kv_of(name):
    """PaddleSeg's name of the key-value projection that belongs to mmsegmentation's query."""
    stage, block, kind = re.match(r".*layers\.(\d)\.1\.(\d+)\.attn\.q\.(\w+)", name).groups()
    return f"backbone.block{int(stage) + 1}.{block}.attn.kv.{kind}"


def paddlevit(ours, classes):
    layers = {
        "mlp.fc1": "ffn.fc1",
        "mlp.dwconv.dwconv": "ffn.pe_conv",
        "mlp.fc2": "ffn.fc2",
    }
    convolved = {k: v.T if re.search(r"mlp\.fc\d\.weight", k) else v for k, v in ours.items()}
    return _openmmlab(convolved, layers)


def paddleseg(ours, classes):
    return dict(ours)


# Conversion to each format, and the stage projection of its decode head.
FORMATS = {
    "paddleseg": (paddleseg, "linear"),
    "nvlabs": (nvlabs, "linear"),
    "huggingface": (huggingface, "linear"),
    "mmseg": (mmseg, "conv_bn_relu"),
    "paddlevit": (paddlevit, "conv_bn_relu"),
}
