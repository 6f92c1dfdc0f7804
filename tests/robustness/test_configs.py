"""Configs that are malformed, cannot be built, or contradict the data."""

import pytest
import yaml

from paddleseg_segformer import InputError
from paddleseg_segformer.config import load_config

from .cases import Case, Workspace, check, succeeds, table


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


def base_60(workspace):
    text = yaml.safe_dump({**workspace.tree(), "batch_size": "x"})
    return config(text.replace("batch_size: x", "batch_size: 1:30").encode())(workspace)


BOMB = b"a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + b"".join(
    b"a%d: &a%d [%s]\n" % (i, i, b", ".join([b"*a%d" % (i - 1)] * 10)) for i in range(1, 12)
)

FILES = [
    Case("missing", "train", missing, "{}/config.yaml: does not exist", new_process=True),
    Case("a directory", "train", directory, "{}/config.yaml: cannot be read (Is a directory)."),
    Case("binary", "train", config(bytes(range(256)) * 9), "{}/config.yaml: is not UTF-8 text"),
    Case("empty", "train", config(b""), "{}/config.yaml: holds no settings"),
    Case("only a comment", "train", config(b"# nothing\n"), "{}/config.yaml: holds no settings"),
    Case("a list", "train", config(b"- a\n- b\n"), "{}/config.yaml: holds no settings"),
    Case("text", "train", config(b"hello\n"), "{}/config.yaml: holds no settings"),
    Case("a number", "val", evaluate(config(b"7\n")), "{}/config.yaml: holds no settings"),
    Case(
        "not YAML",
        "train",
        config(b"a: [1, 2\nb: }\n"),
        "{}/config.yaml: is not valid YAML (while parsing a flow sequence",
    ),
    Case(
        "tabs",
        "train",
        config(b"model:\n\ttype: SegFormer\n"),
        "{}/config.yaml: is not valid YAML (while scanning for the next token",
    ),
    Case(
        "two documents",
        "train",
        config(b"a: 1\n---\nb: 2\n"),
        "{}/config.yaml: is not valid YAML (expected a single document",
    ),
    Case(
        "asks to run code",
        "train",
        config(b"a: !!python/object/apply:os.getpid []\n"),
        "{}/config.yaml: is not valid YAML (could not determine a constructor",
    ),
    Case(
        "an alias bomb",
        "train",
        config(BOMB),
        "{}/config.yaml: its aliases expand to more than 1,000,000 characters",
    ),
    Case(
        "an alias that contains itself",
        "train",
        config(b"model: &m {type: SegFormer, backbone: *m}\n"),
        "{}/config.yaml: its aliases expand to more than 1,000,000 characters",
    ),
    Case(
        "an object",
        "train",
        config(b"a: !!python/name:os.system\n"),
        "{}/config.yaml: is not valid YAML (could not determine a constructor",
    ),
    Case(
        "a key twice",
        "train",
        config(b"iters: 1\nmodel:\n  type: SegFormer\n  type: x\n"),
        "{}/config.yaml: line 4 has the key 'type' again, after line 3; remove one of them.",
    ),
    Case(
        "a number in base 60",
        "train",
        base_60,
        "{}/config.yaml: batch_size must be a whole number above 0, not '1:30'",
    ),
    Case(
        "a number in base 60 as an option",
        "train",
        opts("batch_size=1:30"),
        "{}/config.yaml: batch_size must be a whole number above 0, not '1:30'",
    ),
    Case(
        "a suffix that is not YAML",
        "train",
        suffix,
        "{}/config.json: Config file ({}/config.json) should be yaml format",
    ),
    Case(
        "a file as its own base",
        "train",
        config(b"_base_: config.yaml\n"),
        "{}/config.yaml: is its own _base_, in the end",
    ),
    Case("a cycle of bases", "train", cycle, "{}/config.yaml: is its own _base_, in the end"),
    Case(
        "a missing base",
        "train",
        config(b"_base_: nowhere.yaml\n"),
        "{}/config.yaml: {}/nowhere.yaml: does not exist",
    ),
    Case(
        "a number as base",
        "train",
        config(b"_base_: 3\n"),
        "{}/config.yaml: _base_ must be a file or a list of files, not 3.",
    ),
    Case("an empty base", "train", config(b"_base_: ''\n"), "{}/config.yaml: model: is missing"),
    Case(
        "UTF-16",
        "train",
        config("iters: 1\n".encode("utf-16")),
        "{}/config.yaml: is not UTF-8 text",
    ),
    Case(
        "Latin-1",
        "train",
        config("größe: 1\n".encode("latin-1")),
        "{}/config.yaml: is not UTF-8 text",
    ),
]

SECTIONS = ("model", "train_dataset", "optimizer", "lr_scheduler", "loss", "iters", "batch_size")
KEYS = [
    *[
        Case(f"no {key}", "train", without(key), f"{{}}/config.yaml: {key}: is missing; add it")
        for key in SECTIONS
    ],
    Case(
        "no val_dataset",
        "val",
        evaluate(without("val_dataset")),
        "val_dataset: is missing in the config",
    ),
    Case("no coef", "train", without("loss", "coef"), "{}/config.yaml: loss.coef: is missing"),
    Case("no types", "train", without("loss", "types"), "{}/config.yaml: loss.types: is missing"),
    Case(
        "no learning rate",
        "train",
        without("lr_scheduler", "learning_rate"),
        "{}/config.yaml: lr_scheduler.learning_rate: is missing",
    ),
    Case(
        "no transforms",
        "train",
        without("train_dataset", "transforms"),
        "{}/config.yaml: train_dataset.transforms: is missing",
    ),
    Case(
        "no backbone",
        "train",
        without("model", "backbone"),
        "{}/config.yaml: model.backbone: is missing",
    ),
    Case(
        "no mode",
        "train",
        without("train_dataset", "mode"),
        "{}/config.yaml: train_dataset.mode: is missing",
    ),
    Case(
        "no list", "train", without("train_dataset", "train_path"), "Dataset: train_path is not set"
    ),
    Case(
        "unknown component",
        "train",
        opts("model.type=Segforma"),
        "{}/config.yaml: model.type: there is no component Segforma",
    ),
    Case(
        "a typo",
        "train",
        opts("model.droput=0.1"),
        "{}/config.yaml: model.droput: unknown key of SegFormer",
    ),
    Case(
        "a non-ASCII key",
        "train",
        opts("μοντέλο.type=SegFormer"),
        "{}/config.yaml: --opts μοντέλο.type=SegFormer: the config has no section 'μοντέλο'.",
    ),
    Case(
        "transforms of null",
        "train",
        opts("train_dataset.transforms=null"),
        "{}/config.yaml: train_dataset.transforms: must be given, not None.",
    ),
    Case(
        "no equals sign",
        "train",
        opts("iters"),
        "{}/config.yaml: --opts iters: must have the form key=value.",
    ),
    Case(
        "no such section",
        "train",
        opts("a.b.c=1"),
        "{}/config.yaml: --opts a.b.c=1: the config has no section 'a'.",
    ),
    Case("no key", "train", opts("=1"), "{}/config.yaml: --opts =1: must have the form key=value."),
    Case(
        "a key within a number",
        "train",
        opts("iters.a=1"),
        "{}/config.yaml: --opts iters.a=1: the config has no section 'iters'.",
    ),
    Case(
        "bad YAML",
        "train",
        opts("model.dropout=[1"),
        "{}/config.yaml: --opts model.dropout=…: is not valid YAML (while parsing a flow",
    ),
    Case(
        "a number of 5000 digits",
        "train",
        opts("iters=" + "9" * 5000),
        "{}/config.yaml: --opts iters=…: is not valid YAML",
    ),
    Case(
        "a number in quotes",
        "train",
        opts("iters='9999999999'"),
        "{}/config.yaml: iters must be a whole number above 0, not '9999999999'.",
    ),
    Case(
        "a crop size of 0",
        "train",
        transform("type: RandomPaddingCrop, crop_size: [0, 0]"),
        "{}/config.yaml: train_dataset.transforms[0].crop_size: must be above 0, not [0, 0].",
    ),
    Case(
        "a crop size of text",
        "train",
        transform("type: RandomPaddingCrop, crop_size: big"),
        "{}/config.yaml: train_dataset.transforms[0].crop_size: must be a list, not 'big'.",
    ),
    Case(
        "a negative crop size",
        "train",
        transform("type: RandomPaddingCrop, crop_size: [-64, -64]"),
        "{}/config.yaml: train_dataset.transforms[0].crop_size: must be above 0, not [-64,",
    ),
    Case(
        "a category crop size of 0",
        "train",
        transform("type: RandomCategoryCrop, crop_size: [0, 64]"),
        "{}/config.yaml: train_dataset.transforms[0].crop_size: must be above 0, not [0, 64].",
    ),
    Case(
        "a negative size",
        "train",
        transform("type: Resize, target_size: [-64, 64]"),
        "{}/config.yaml: train_dataset.transforms[0].target_size: must be above 0, not [-64,",
    ),
    Case(
        "a size with one side",
        "train",
        transform("type: Resize, target_size: [64]"),
        "Resize: cannot be built: `target_size` should include 2 elements, but it is [64]",
    ),
    Case(
        "a target size of text",
        "train",
        transform("type: ResizeToFit, target_size: [a, b]"),
        "{}/config.yaml: train_dataset.transforms[0].target_size: must be above 0, not ['a',",
    ),
    Case(
        "a ratio range of text",
        "train",
        transform("type: ResizeToFit, target_size: [64, 64], ratio_range: [a, b]"),
        "ResizeToFit: cannot be built: ratio_range must be two positive numbers, not ['a',",
    ),
    Case(
        "a mean of text",
        "train",
        transform("type: Normalize, mean: [a, b, c]"),
        "Normalize: cannot be built: mean must be a number or one per band, not ['a', 'b',",
    ),
    Case(
        "a std of 0",
        "train",
        transform("type: Normalize, std: [0, 0, 0]"),
        "Normalize: cannot be built: std must not be 0, but is [0, 0, 0]",
    ),
    Case(
        "a mean of NaN",
        "train",
        transform("type: Normalize, mean: [.nan, .nan, .nan]"),
        "{}/config.yaml: train_dataset.transforms[0].mean[0]: must be a number, not nan.",
    ),
    Case(
        "other num_classes than the data",
        "train",
        opts("model.num_classes=2"),
        "{}/config.yaml: `num_classes` is not consistent: {2, 3}. Please set it consistently",
    ),
    Case(
        "one class",
        "train",
        classes(1),
        "{}/config.yaml: model.num_classes: must be a whole number above 1",
    ),
    Case(
        "256 classes",
        "train",
        classes(256),
        "{}/config.yaml: train_dataset.num_classes: must be a whole number from 2 to 255",
    ),
    Case(
        "0 classes",
        "train",
        classes(0),
        "{}/config.yaml: model.num_classes: must be a whole number above 1",
    ),
    Case(
        "151 classes of ADE20K",
        "train",
        opts("train_dataset={type: ADE20K, num_classes: 151, transforms: []}"),
        "{}/config.yaml: train_dataset.num_classes: unknown key of ADE20K",
    ),
]


@table(FILES)
def test_files(case, workspace, tools):
    check(case, workspace, tools)


@table(KEYS)
def test_keys(case, workspace, tools):
    check(case, workspace, tools)


NUMBER, WHOLE = ": must be a number", ": must be a whole number above 0"
RATE, TEXT, LIST = ": must be at least 0 and below 1", ": must be text", ": must be a list"
GIVEN, BOOLEAN = ": must be given", ": must be true or false"
COMPONENT, COMPONENTS = ": must be a section with a type", ": must be a list of components"
FIRST, ABSENT, NUMBERS = f"[0]{COMPONENT}", ": there is no component", ": must be a list of numbers"
STAGES = ": must be a list of whole numbers above 0"
CLASSES, MODEL_CLASSES = (
    ": must be a whole number from 2 to 255",
    ": must be a whole number above 1",
)
SECTION = 4 * (" must be a section",)
TYPELESS = (*SECTION, COMPONENT)
POSITIVE = 5 * (" must be a whole number above 0",)
SCHEDULE = 2 * (" must be a number",)
PASSES = None
# The reason for which each of VALUES is rejected, after the key; what passes is in OUTCOMES.
VALUES = {
    "a list": ("[1, x]", [1, "x"]),
    "text": ("word", "word"),
    "negative": ("-3", -3),
    "null": ("null", None),
    "a section": ("{a: 1}", {"a": 1}),
}
REASONS = {
    "iters": POSITIVE,
    "batch_size": POSITIVE,
    "model": TYPELESS,
    "model.type": 5 * (ABSENT,),
    "model.num_classes": 5 * (MODEL_CLASSES,),
    "model.embedding_dim": (WHOLE, WHOLE, WHOLE, PASSES, WHOLE),
    "model.dropout": (NUMBER, NUMBER, RATE, GIVEN, NUMBER),
    "model.align_corners": (BOOLEAN, BOOLEAN, BOOLEAN, PASSES, BOOLEAN),
    "model.stage_projection": (PASSES, PASSES, TEXT, PASSES, TEXT),
    "model.pretrained": (TEXT, PASSES, TEXT, PASSES, TEXT),
    "model.backbone": (COMPONENT, COMPONENT, COMPONENT, GIVEN, COMPONENT),
    "model.backbone.embed_dims": (STAGES, LIST, STAGES, GIVEN, LIST),
    "model.backbone.depths": (STAGES, LIST, STAGES, GIVEN, LIST),
    "model.backbone.drop_path_rate": (NUMBER, NUMBER, RATE, GIVEN, NUMBER),
    "model.backbone.norm_epsilon": (*3 * (f"{NUMBER} above 0",), PASSES, f"{NUMBER} above 0"),
    "model.backbone.pretrained": (TEXT, PASSES, TEXT, PASSES, TEXT),
    "optimizer": TYPELESS,
    "optimizer.type": 5 * (ABSENT,),
    "optimizer.weight_decay": (NUMBER, NUMBER, PASSES, PASSES, NUMBER),
    "optimizer.custom_cfg": 5 * (PASSES,),
    "optimizer.grad_clip_cfg": 5 * (PASSES,),
    "lr_scheduler": TYPELESS,
    "lr_scheduler.type": 5 * (ABSENT,),
    "lr_scheduler.learning_rate": (*SCHEDULE, PASSES, PASSES, *SCHEDULE[:1]),
    "lr_scheduler.power": (*SCHEDULE, PASSES, PASSES, *SCHEDULE[:1]),
    "lr_scheduler.end_lr": (*SCHEDULE, PASSES, PASSES, *SCHEDULE[:1]),
    "lr_scheduler.warmup_iters": (*SCHEDULE, PASSES, PASSES, *SCHEDULE[:1]),
    "loss": (*SECTION, ".types: is missing"),
    "loss.types": (FIRST, *4 * (COMPONENTS,)),
    "loss.coef": 5 * (NUMBERS,),
    "train_dataset": TYPELESS,
    "train_dataset.type": 5 * (ABSENT,),
    "train_dataset.dataset_root": (TEXT, PASSES, TEXT, GIVEN, TEXT),
    "train_dataset.num_classes": 5 * (CLASSES,),
    "train_dataset.mode": (TEXT, PASSES, TEXT, GIVEN, TEXT),
    "train_dataset.transforms": (FIRST, COMPONENTS, COMPONENTS, GIVEN, COMPONENTS),
    "train_dataset.train_path": (TEXT, PASSES, TEXT, PASSES, TEXT),
    "train_dataset.separator": (TEXT, PASSES, TEXT, GIVEN, TEXT),
    "train_dataset.ignore_index": (NUMBER, NUMBER, PASSES, GIVEN, NUMBER),
    "val_dataset": (*SECTION[:3], PASSES, COMPONENT),
    "val_dataset.transforms": (FIRST, COMPONENTS, COMPONENTS, GIVEN, COMPONENTS),
    "test_config": (*SECTION[:3], PASSES, PASSES),
    "to_static_training": 5 * (PASSES,),
}
# What train says to values that pass the check of the config; nothing: it trains.
OUTCOMES = {
    "model.embedding_dim=null": "SegFormer: cannot be built: embedding_dim is missing, and ",
    "model.align_corners=null": "",
    **{
        f"model.stage_projection={text}": f"SegFormer: cannot be built: stage_projection is {value}"
        for text, value in (("[1, x]", [1, "x"]), ("word", "'word'"), ("null", None))
    },
    "model.pretrained=word": "word: cannot be read (No such file or directory).",
    "model.pretrained=null": "",
    "model.backbone.norm_epsilon=null": "",
    "model.backbone.pretrained=word": "word: cannot be read (No such file or directory).",
    "model.backbone.pretrained=null": "",
    "optimizer.weight_decay=-3": "AdamW: cannot be built: `weight_decay` must be a float.",
    "optimizer.weight_decay=null": "The config cannot be built: weight_decay should be ",
    "optimizer.custom_cfg=[1, x]": "AdamW: cannot be built: The item of `custom_cfg` must be a ",
    "optimizer.custom_cfg=null": "",
    "optimizer.grad_clip_cfg=null": "",
    "optimizer.grad_clip_cfg={a: 1}": "AdamW: cannot be built: No name specified in grad_clip_cfg",
    **{
        f"optimizer.{key}={text}": f"AdamW: cannot be built: `{key}` must be a {kind}."
        for key, kind, texts in (
            ("custom_cfg", "list", ("word", "-3", "{a: 1}")),
            ("grad_clip_cfg", "dict", ("[1, x]", "word", "-3")),
        )
        for text in texts
    },
    **{
        f"lr_scheduler.{key}": f"The config cannot be built: Create PolynomialDecay has failed.…{e}"
        for key, e in {
            "learning_rate=-3": "Invalid learning rate: -3",
            "learning_rate=null": "The type of learning rate must be float, but received ",
            "power=-3": "'power' must be greater than 0.0",
            "power=null": "'>' not supported between instances of 'NoneType' and 'float'",
            "end_lr=null": "unsupported operand type(s) for -: 'float' and 'NoneType'",
        }.items()
    },
    "lr_scheduler.end_lr=-3": "",
    "lr_scheduler.warmup_iters=-3": "The config cannot be built: When use warmup, please set ",
    "lr_scheduler.warmup_iters=null": "",
    "train_dataset.dataset_root=word": "Dataset: dataset_root is word, which is not a folder.",
    "train_dataset.mode=word": "Dataset: mode is 'word'; it must be one of train, val, test.",
    "train_dataset.train_path=word": "word: cannot be read as a list (No such file or directory).",
    "train_dataset.train_path=null": "Dataset: train_path is not set; name the list of files.",
    "train_dataset.separator=word": "{}/train.txt: line 1 has 1 columns instead of an image and a ",
    "train_dataset.ignore_index=-3": "",
    "val_dataset=null": "",
    "test_config=null": "",
    "test_config={a: 1}": "test_config.a: unknown key; known are aug_eval, ",
    **{f"to_static_training={text}": "" for text, _ in VALUES.values()},
}


@pytest.fixture(scope="module")
def valid(tmp_path_factory):
    """The path of a valid config."""
    workspace = Workspace(tmp_path_factory.mktemp("config"))
    workspace.fill()
    return workspace.config


def rejections():
    """Options, the value, and the reason."""
    for key, reasons in REASONS.items():
        yield f"{key}=.nan", key, ": must be a number", "nan"
        for (text, value), reason in zip(VALUES.values(), reasons):
            if reason is not PASSES:
                yield f"{key}={text}", key, reason, value


@pytest.mark.parametrize("option, key, reason, value", rejections())
def test_values_of_other_types_are_rejected(option, key, reason, value, valid):
    with pytest.raises(InputError) as caught:
        load_config(valid, [option])
    message, start = str(caught.value), f"{valid}: {key}{reason}"
    assert message.startswith(start)
    if reason == ABSENT:
        assert message.startswith(f"{start} {value}")
    elif "missing" not in reason:
        shown = value if value == "nan" else repr(1 if reason == FIRST else value)
        assert message.endswith(f", not {shown}.")


def test_every_value_has_an_outcome():
    passing = {
        f"{key}={text}"
        for key, reasons in REASONS.items()
        for (text, _), reason in zip(VALUES.values(), reasons)
        if reason is PASSES
    }
    assert passing == set(OUTCOMES)


@pytest.mark.parametrize("option", OUTCOMES)
def test_other_values_train_or_cannot_be_built(option, workspace, tools):
    if OUTCOMES[option]:
        check(Case(option, "train", opts(option), OUTCOMES[option]), workspace, tools)
    else:
        assert succeeds("train", workspace.train(option), tools).err == ""


def test_a_byte_order_mark_and_windows_line_ends(workspace, tools):
    text = workspace.config.read_bytes()
    workspace.config.write_bytes(b"\xef\xbb\xbf" + text.replace(b"\n", b"\r\n"))
    succeeds("train", workspace.train(), tools)


def test_a_link_needs_no_ending(workspace):
    link = workspace.root / "link"
    link.symlink_to(workspace.config)
    assert load_config(link).dic == load_config(workspace.config).dic


def test_merged_mappings_and_quoted_numbers_are_read(workspace):
    tree = workspace.tree()
    text = yaml.safe_dump(tree).replace("loss:", "loss: &loss", 1)
    text += "distillation_options: {<<: [*loss, {x: 1}], coef: '1:30'}\n"
    workspace.write_config(text.encode())
    options = load_config(workspace.config).dic["distillation_options"]
    assert options == {**tree["loss"], "x": 1, "coef": "1:30"}


def test_bases_are_read_once(workspace):
    """Each file names the next one twice, so that 2 ** 40 reads would be needed."""
    workspace.config.rename(workspace.root / "40.yaml")
    for i in range(40):
        workspace.write(f"{i}.yaml", f"_base_: [{i + 1}.yaml, {i + 1}.yaml]\n".encode())
    assert load_config(workspace.root / "0.yaml").iters == 1
