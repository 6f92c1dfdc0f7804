"""Hugging Face transformers' SegFormer, for segmentation and for image classification."""

from .naming import BATCH_NORM, join_key_value, of_stages, rename, transpose_linears

NAME = "huggingface"
EPSILON = 1e-5

# Files of save_pretrained have the first name of each pair; since version 5, the model's own
# state_dict(), and so a torch.save of it, has the second.
_RULES = (
    *of_stages(
        (r"^(segformer\.)?encoder\.patch_embeddings\.{}\.", "backbone.patch_embed{}."),
        (r"^(segformer\.)?stages\.{}\.patch_embeddings\.", "backbone.patch_embed{}."),
        (r"^(segformer\.)?encoder\.block\.{}\.", "backbone.block{}."),
        (r"^(segformer\.)?stages\.{}\.blocks\.", "backbone.block{}."),
        (r"^(segformer\.)?encoder\.layer_norm\.{}\.", "backbone.norm{}."),
        (r"^(segformer\.)?stages\.{}\.layer_norm\.", "backbone.norm{}."),
        (r"^decode_head\.linear_(c|projections)\.{}\.", "linear_c{}."),
    ),
    (r"\.attention\.self\.(query|key|value)\.", r".attn.\1."),
    (r"\.attention\.q_proj\.", ".attn.query."),
    (r"\.attention\.k_proj\.", ".attn.key."),
    (r"\.attention\.v_proj\.", ".attn.value."),
    (r"\.attn\.query\.", ".attn.q."),
    (r"\.attention\.(output\.dense|o_proj)\.", ".attn.proj."),
    (r"\.attention\.(self\.sr|sequence_reduction\.sequence_reduction)\.", ".attn.sr."),
    (r"\.attention\.(self|sequence_reduction)\.layer_norm\.", ".attn.norm."),
    (r"\.(layer_norm_1|layernorm_before)\.", ".norm1."),
    (r"\.(layer_norm_2|layernorm_after)\.", ".norm2."),
    (r"(patch_embed\d)\.layer_norm\.", r"\1.norm."),
    (r"\.mlp\.dense([12])\.", r".mlp.fc\1."),
    (r"^decode_head\.linear_fuse\.", "linear_fuse._conv."),
    (r"^decode_head\.batch_norm\.", "linear_fuse._batch_norm."),
    (r"^decode_head\.classifier\.", "linear_pred."),
    *BATCH_NORM,
)


def matches(state):
    """Whether the names are those of transformers."""
    return any(".patch_embeddings." in name for name in state)


def convert(state):
    """To our names and layout; the ImageNet classifier goes unused."""
    state = rename(state, _RULES, unused=(r"^classifier\.",))
    join_key_value(state, ".attn.key.", ".attn.value.", ".attn.kv.")
    return transpose_linears(state)
