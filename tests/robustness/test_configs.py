"""Configurations that are no YAML, describe nothing that can be built, or contradict the data."""

import pytest

from .cases import Case, check, table, works


def config(content):
    """A configuration's file with this content."""

    def make(place):
        place.write_config(content)
        return place.train()

    return make


def opts(*options):
    """The sound configuration with these of ``--opts``."""
    return lambda place: place.train(*options)


def transform(text):
    """The sound configuration with this transform alone."""
    return opts(f"train_dataset.transforms=[{{{text}}}]")


def classes(number):
    """The sound configuration with so many classes."""
    sections = ("model", "train_dataset", "val_dataset")
    return opts(*[f"{section}.num_classes={number}" for section in sections])


def without(*keys):
    """The sound configuration without a key of a key of it."""

    def make(place):
        tree = place.tree()
        part = tree
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
        place.write_config(tree)
        return place.train()

    return make


def evaluate(spoil):
    """The arguments of ``val`` on such a configuration."""
    return lambda place: [*spoil(place)[2:], "--model_path", place.root / "run/best_model"]


def missing(place):
    place.config.unlink()
    return place.train()


def directory(place):
    place.config.unlink()
    place.config.mkdir()
    return place.train()


def cycle(place):
    place.write("other.yaml", b"_base_: config.yaml\n")
    return config(b"_base_: other.yaml\niters: 3\n")(place)


def ending(place):
    place.config.rename(place.root / "config.json")
    return ["--save_dir", place.out, "--config", place.root / "config.json", "--device", "cpu"]


BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 12)
)

FILES = [
    Case("missing", "train", missing, "config.yaml", alone=True),
    Case("a directory", "train", directory, "config.yaml"),
    Case("binary", "train", config(bytes(range(256)) * 9), "config.yaml"),
    Case("empty", "train", config(b""), "config.yaml"),
    Case("a comment alone", "train", config(b"# nothing\n"), "config.yaml"),
    Case("a list", "train", config(b"- a\n- b\n"), "config.yaml"),
    Case("text", "train", config(b"hello\n"), "config.yaml"),
    Case("a number", "val", evaluate(config(b"7\n")), "config"),
    Case("not YAML", "train", config(b"a: [1, 2\nb: }\n"), "config.yaml"),
    Case("tabs", "train", config(b"model:\n\ttype: SegFormer\n"), "config.yaml"),
    Case("two documents", "train", config(b"a: 1\n---\nb: 2\n"), "config.yaml"),
    Case("asks to run code", "train", config(b"a: !!python/object/apply:os.getpid []\n"), "config"),
    Case("aliases without end", "train", config(BOMB), "config.yaml"),
    Case(
        "an alias of itself", "train", config(b"model: &m {type: SegFormer, backbone: *m}\n"), "c"
    ),
    Case("no YAML's ending", "train", ending, "config.json"),
    Case("a base of itself", "train", config(b"_base_: config.yaml\n"), ("config.yaml", "_base_")),
    Case("bases in a circle", "train", cycle, ("config.yaml", "_base_")),
    Case("a base missing", "train", config(b"_base_: nowhere.yaml\n"), "nowhere.yaml"),
    Case("a base that is a number", "train", config(b"_base_: 3\n"), ("config.yaml", "_base_")),
    Case("a base that is empty", "train", config(b"_base_: ''\n"), "config.yaml"),
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
    Case("a key in Greek", "train", opts("μοντέλο.type=SegFormer"), "μοντέλο"),
    Case("no transforms at all", "train", opts("train_dataset.transforms=null"), "transforms"),
    Case("no equals sign", "train", opts("iters"), ("--opts iters", "key=value")),
    Case("no such section", "train", opts("a.b.c=1"), ("--opts a.b.c=1", "a")),
    Case("no key", "train", opts("=1"), "--opts =1"),
    Case("a section of a number", "train", opts("iters.a=1"), "--opts iters.a=1"),
    Case("bad YAML", "train", opts("model.dropout=[1"), "[1"),
    Case("an option without end", "train", opts("iters=" + "9" * 5000), "iters"),
    Case("a number as text", "train", opts("iters='9999999999'"), "iters"),
    Case(
        "a crop of nothing",
        "train",
        transform("type: RandomPaddingCrop, crop_size: [0, 0]"),
        "crop_size",
    ),
    Case(
        "a crop of a word",
        "train",
        transform("type: RandomPaddingCrop, crop_size: big"),
        "crop_size",
    ),
    Case(
        "a crop below nothing",
        "train",
        transform("type: RandomPaddingCrop, crop_size: [-64, -64]"),
        "crop_size",
    ),
    Case(
        "a category crop of nothing",
        "train",
        transform("type: RandomCategoryCrop, crop_size: [0, 64]"),
        "crop_size",
    ),
    Case(
        "a size below nothing",
        "train",
        transform("type: Resize, target_size: [-64, 64]"),
        "target_size",
    ),
    Case("a size for one side", "train", transform("type: Resize, target_size: [64]"), "Resize"),
    Case(
        "a size to fit of words",
        "train",
        transform("type: ResizeToFit, target_size: [a, b]"),
        "target_size",
    ),
    Case(
        "ratios of words",
        "train",
        transform("type: ResizeToFit, target_size: [64, 64], ratio_range: [a, b]"),
        "ratio_range",
    ),
    Case(
        "a mean of words",
        "train",
        transform("type: Normalize, mean: [a, b, c]"),
        ("Normalize", "mean"),
    ),
    Case(
        "a std of nothing",
        "train",
        transform("type: Normalize, std: [0, 0, 0]"),
        ("Normalize", "std"),
    ),
    Case(
        "a mean that is not a number",
        "train",
        transform("type: Normalize, mean: [.nan, .nan, .nan]"),
        "mean",
    ),
    Case("other classes than the data", "train", opts("model.num_classes=2"), "num_classes"),
    Case("one class", "train", classes(1), ("model.num_classes", "background")),
    Case("256 classes", "train", classes(256), "num_classes"),
    Case("no classes", "train", classes(0), "num_classes"),
    Case(
        "151 classes of ADE20K",
        "train",
        opts("train_dataset={type: ADE20K, num_classes: 151, transforms: []}"),
        "num_classes",
    ),
]


@table(FILES)
def test_files(case, place, tools):
    check(case, place, tools)


@table(KEYS)
def test_keys(case, place, tools):
    check(case, place, tools)


# Where these stand, a run goes on: null leaves a default, and some numbers mean something.
KEYS_OF_ALL_KINDS = (
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
@pytest.mark.parametrize("key", KEYS_OF_ALL_KINDS)
def test_kinds(key, value, place, tools):
    done = tools("train", place.train(f"{key}={value}"))
    print(done.code, done.err)
    assert done.code in (0, 2) and "Traceback" not in done.err, done.err
    assert len(done.err.splitlines()) <= 3
    if done.code:
        assert any(name in done.err for name in (key.split(".")[-1], key.split(".")[0], value))


def test_a_byte_order_mark_and_windows_line_ends(place, tools):
    text = place.config.read_bytes()
    place.config.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    works("train", place.train(), tools)
