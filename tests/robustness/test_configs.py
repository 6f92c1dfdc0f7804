"""Configs that are malformed, cannot be built, or contradict the data."""

import pytest

from .cases import Case, check, succeeds, table


def config(content):
    """``train`` with a config file of this content."""

    def make(workspace):
        workspace.write_config(content)
        return workspace.train()

    return make


def opts(*options):
    """``train`` with the valid config and these ``--opts``."""
    return lambda workspace: workspace.train(*options)


def transform(text):
    """``train`` with only this transform."""
    return opts(f"train_dataset.transforms=[{{{text}}}]")


def classes(number):
    """``train`` with this number of classes."""
    sections = ("model", "train_dataset", "val_dataset")
    return opts(*[f"{section}.num_classes={number}" for section in sections])


def without(*keys):
    """``train`` without a (nested) key of the valid config."""

    def make(workspace):
        tree = workspace.tree()
        section = tree
        for key in keys[:-1]:
            section = section[key]
        del section[keys[-1]]
        workspace.write_config(tree)
        return workspace.train()

    return make


def evaluate(damage):
    """``val`` with the same config."""
    return lambda workspace: [
        *damage(workspace)[2:],
        "--model_path",
        workspace.root / "run/best_model",
    ]


def missing(workspace):
    workspace.config.unlink()
    return workspace.train()


def directory(workspace):
    workspace.config.unlink()
    workspace.config.mkdir()
    return workspace.train()


def cycle(workspace):
    workspace.write("other.yaml", b"_base_: config.yaml\n")
    return config(b"_base_: other.yaml\niters: 3\n")(workspace)


def suffix(workspace):
    workspace.config.rename(workspace.root / "config.json")
    return [
        "--save_dir",
        workspace.out,
        "--config",
        workspace.root / "config.json",
        "--device",
        "cpu",
    ]


BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 12)
)

FILES = [
    Case("missing", "train", missing, "config.yaml", new_process=True),
    Case("a directory", "train", directory, "config.yaml"),
    Case("binary", "train", config(bytes(range(256)) * 9), "config.yaml"),
    Case("empty", "train", config(b""), "config.yaml"),
    Case("only a comment", "train", config(b"# nothing\n"), "config.yaml"),
    Case("a list", "train", config(b"- a\n- b\n"), "config.yaml"),
    Case("text", "train", config(b"hello\n"), "config.yaml"),
    Case("a number", "val", evaluate(config(b"7\n")), "config"),
    Case("not YAML", "train", config(b"a: [1, 2\nb: }\n"), "config.yaml"),
    Case("tabs", "train", config(b"model:\n\ttype: SegFormer\n"), "config.yaml"),
    Case("two documents", "train", config(b"a: 1\n---\nb: 2\n"), "config.yaml"),
    Case("asks to run code", "train", config(b"a: !!python/object/apply:os.getpid []\n"), "config"),
    Case("an alias bomb", "train", config(BOMB), "config.yaml"),
    Case(
        "an alias that contains itself",
        "train",
        config(b"model: &m {type: SegFormer, backbone: *m}\n"),
        "c",
    ),
    Case("a suffix that is not YAML", "train", suffix, "config.json"),
    Case(
        "a file as its own base",
        "train",
        config(b"_base_: config.yaml\n"),
        ("config.yaml", "_base_"),
    ),
    Case("a cycle of bases", "train", cycle, ("config.yaml", "_base_")),
    Case("a missing base", "train", config(b"_base_: nowhere.yaml\n"), "nowhere.yaml"),
    Case("a number as base", "train", config(b"_base_: 3\n"), ("config.yaml", "_base_")),
    Case("an empty base", "train", config(b"_base_: ''\n"), "config.yaml"),
    Case("UTF-16", "train", config("iters: 1\n".encode("utf-16")), "config.yaml"),
    Case("Latin-1", "train", config("größe: 1\n".encode("latin-1")), "config.yaml"),
]

SECTIONS = ("model", "train_dataset", "optimizer", "lr_scheduler", "loss", "iters", "batch_size")
KEYS = [
    *[Case(f"no {key}", "train", without(key), key) for key in SECTIONS],
    Case("no val_dataset", "val", evaluate(without("val_dataset")), "val_dataset"),
    Case("no coef", "train", without("loss", "coef"), "coef"),
    Case("no types", "train", without("loss", "types"), "types"),
    Case("no learning rate", "train", without("lr_scheduler", "learning_rate"), "learning_rate"),
    Case("no transforms", "train", without("train_dataset", "transforms"), "transforms"),
    Case("no backbone", "train", without("model", "backbone"), "backbone"),
    Case("no mode", "train", without("train_dataset", "mode"), "mode"),
    Case("no list", "train", without("train_dataset", "train_path"), "train_path"),
    Case("unknown component", "train", opts("model.type=Segforma"), ("model.type", "SegFormer")),
    Case("a typo", "train", opts("model.droput=0.1"), ("model.droput", "dropout")),
    Case("a non-ASCII key", "train", opts("μοντέλο.type=SegFormer"), "μοντέλο"),
    Case("transforms of null", "train", opts("train_dataset.transforms=null"), "transforms"),
    Case("no equals sign", "train", opts("iters"), ("--opts iters", "key=value")),
    Case("no such section", "train", opts("a.b.c=1"), ("--opts a.b.c=1", "a")),
    Case("no key", "train", opts("=1"), "--opts =1"),
    Case("a key within a number", "train", opts("iters.a=1"), "--opts iters.a=1"),
    Case("bad YAML", "train", opts("model.dropout=[1"), "[1"),
    Case("a number of 5000 digits", "train", opts("iters=" + "9" * 5000), "iters"),
    Case("a number in quotes", "train", opts("iters='9999999999'"), "iters"),
    Case(
        "a crop size of 0",
        "train",
        transform("type: RandomPaddingCrop, crop_size: [0, 0]"),
        "crop_size",
    ),
    Case(
        "a crop size of text",
        "train",
        transform("type: RandomPaddingCrop, crop_size: big"),
        "crop_size",
    ),
    Case(
        "a negative crop size",
        "train",
        transform("type: RandomPaddingCrop, crop_size: [-64, -64]"),
        "crop_size",
    ),
    Case(
        "a category crop size of 0",
        "train",
        transform("type: RandomCategoryCrop, crop_size: [0, 64]"),
        "crop_size",
    ),
    Case(
        "a negative size",
        "train",
        transform("type: Resize, target_size: [-64, 64]"),
        "target_size",
    ),
    Case("a size with one side", "train", transform("type: Resize, target_size: [64]"), "Resize"),
    Case(
        "a target size of text",
        "train",
        transform("type: ResizeToFit, target_size: [a, b]"),
        "target_size",
    ),
    Case(
        "a ratio range of text",
        "train",
        transform("type: ResizeToFit, target_size: [64, 64], ratio_range: [a, b]"),
        "ratio_range",
    ),
    Case(
        "a mean of text",
        "train",
        transform("type: Normalize, mean: [a, b, c]"),
        ("Normalize", "mean"),
    ),
    Case(
        "a std of 0",
        "train",
        transform("type: Normalize, std: [0, 0, 0]"),
        ("Normalize", "std"),
    ),
    Case(
        "a mean of NaN",
        "train",
        transform("type: Normalize, mean: [.nan, .nan, .nan]"),
        "mean",
    ),
    Case("other num_classes than the data", "train", opts("model.num_classes=2"), "num_classes"),
    Case("one class", "train", classes(1), ("model.num_classes", "background")),
    Case("256 classes", "train", classes(256), "num_classes"),
    Case("0 classes", "train", classes(0), "num_classes"),
    Case(
        "151 classes of ADE20K",
        "train",
        opts("train_dataset={type: ADE20K, num_classes: 151, transforms: []}"),
        "num_classes",
    ),
]


@table(FILES)
def test_files(case, workspace, tools):
    check(case, workspace, tools)


@table(KEYS)
def test_keys(case, workspace, tools):
    check(case, workspace, tools)


# Each with each of VALUES, some of which are valid: null is the default, and -3 may be a number.
FUZZED_KEYS = (
    "iters",
    "batch_size",
    "model",
    "model.type",
    "model.num_classes",
    "model.embedding_dim",
    "model.dropout",
    "model.align_corners",
    "model.stage_projection",
    "model.pretrained",
    "model.backbone",
    "model.backbone.embed_dims",
    "model.backbone.depths",
    "model.backbone.drop_path_rate",
    "model.backbone.norm_epsilon",
    "model.backbone.pretrained",
    "optimizer",
    "optimizer.type",
    "optimizer.weight_decay",
    "optimizer.custom_cfg",
    "optimizer.grad_clip_cfg",
    "lr_scheduler",
    "lr_scheduler.type",
    "lr_scheduler.learning_rate",
    "lr_scheduler.power",
    "lr_scheduler.end_lr",
    "lr_scheduler.warmup_iters",
    "loss",
    "loss.types",
    "loss.coef",
    "train_dataset",
    "train_dataset.type",
    "train_dataset.dataset_root",
    "train_dataset.num_classes",
    "train_dataset.mode",
    "train_dataset.transforms",
    "train_dataset.train_path",
    "train_dataset.separator",
    "train_dataset.ignore_index",
    "val_dataset",
    "val_dataset.transforms",
    "test_config",
    "to_static_training",
)
VALUES = {
    "a list": "[1, x]",
    "text": "word",
    "negative": "-3",
    "null": "null",
    "nan": ".nan",
    "section": "{a: 1}",
}


@pytest.mark.parametrize("value", VALUES.values(), ids=VALUES)
@pytest.mark.parametrize("key", FUZZED_KEYS)
def test_values_of_other_types(key, value, workspace, tools):
    result = tools("train", workspace.train(f"{key}={value}"))
    print(result.code, result.err)
    assert result.code in (0, 2) and "Traceback" not in result.err, result.err
    assert len(result.err.splitlines()) <= 3
    if result.code:
        assert any(name in result.err for name in (key.split(".")[-1], key.split(".")[0], value))


def test_a_byte_order_mark_and_windows_line_ends(workspace, tools):
    text = workspace.config.read_bytes()
    workspace.config.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    succeeds("train", workspace.train(), tools)
