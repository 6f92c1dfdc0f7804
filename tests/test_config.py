"""Reading configs, config overrides and building components; errors name the file or key."""

import json

import pytest

import paddleseg_segformer as ps
from paddleseg_segformer.config import build, load_config, settings

TEXT = """
batch_size: 2
iters: 100
train_dataset: {type: Dataset, dataset_root: ., num_classes: 3, mode: train, transforms: []}
optimizer: {type: AdamW, weight_decay: 0.01}
lr_scheduler: {type: PolynomialDecay, learning_rate: 0.1, warmup_iters: 50, warmup_start_lr: 0.0}
loss: {types: [{type: CrossEntropyLoss}], coef: [1]}
model:
  type: SegFormer
  embedding_dim: 16
  backbone: {type: MixVisionTransformer_B0, pretrained: somewhere}
"""


@pytest.fixture
def path(tmp_path):
    (tmp_path / "config.yaml").write_text(TEXT)
    return tmp_path / "config.yaml"


@pytest.mark.parametrize(
    "text, value",
    [
        ("null", None),
        ("None", None),
        ("6e-5", 6e-5),
        ("true", True),
        ("[1, 2]", [1, 2]),
        ("'7'", "7"),
        ("a=b", "a=b"),
        ("https://x.org/a?b=c", "https://x.org/a?b=c"),
        ("{a: 1}", {"a": 1}),
    ],
)
def test_opts(path, text, value):
    config = load_config(path, [f"to_static_training={text}"])
    assert config.to_static_training == value


@pytest.mark.parametrize(
    "option, reason",
    [
        ("model.pretrained", "must have the form key=value."),
        ("modle.pretrained=1", "the config has no section 'modle'."),
        ("iters.x=1", "the config has no section 'iters'."),
        ("model.a.b=1", "the config has no section 'a'."),
        ("=1", "must have the form key=value."),
        ("model.pretrained=", "has no value; write null for none."),
        ("iters= ", "has no value; write null for none."),
    ],
)
def test_malformed_opts_are_errors(path, option, reason):
    with pytest.raises(ps.InputError) as caught:
        load_config(path, [option])
    assert str(caught.value) == f"{path}: --opts {option}: {reason}"


def test_settings_are_a_copy_of_plain_values(path):
    config = load_config(path, ["lr_scheduler.learning_rate=6e-5"])
    copy = settings(config)
    assert json.loads(json.dumps(copy)) == copy
    assert copy["lr_scheduler"]["learning_rate"] == 6e-5
    copy["model"]["backbone"]["type"] = "changed"
    assert config.model_cfg["backbone"]["type"] == "MixVisionTransformer_B0"


def test_bases_are_merged_in_their_order_and_overridden(path):
    """The first base has precedence, and an option changes one key of a nested section."""
    folder = path.parent
    (folder / "first.yaml").write_text("batch_size: 3\nmodel: {dropout: 0.3}\n")
    (folder / "second.yaml").write_text(f"_base_: {path.name}\nbatch_size: 4\niters: 60\n")
    (folder / "top.yaml").write_text("_base_: [first.yaml, second.yaml]\nloss: {coef: [2]}\n")
    config = load_config(folder / "top.yaml", ["model.backbone.pretrained=null"])
    assert (config.batch_size, config.iters) == (3, 60)
    assert config.loss_cfg["coef"] == [2] and len(config.loss_cfg["types"]) == 1
    assert config.model_cfg["dropout"] == 0.3 and config.model_cfg["embedding_dim"] == 16
    backbone = config.model_cfg["backbone"]
    assert backbone["type"] == "MixVisionTransformer_B0" and backbone["pretrained"] is None


def test_overrides_and_shortened_warmup(path):
    assert load_config(path).lr_scheduler_cfg["warmup_iters"] == 50
    config = load_config(path, iters=20, learning_rate=0.5, batch_size=7)
    assert (config.iters, config.batch_size) == (20, 7)
    assert config.lr_scheduler_cfg["learning_rate"] == 0.5
    assert config.lr_scheduler_cfg["warmup_iters"] == 2
    for nothing in ("null", "0"):
        schedule = load_config(path, [f"lr_scheduler.warmup_iters={nothing}"]).lr_scheduler_cfg
        assert "warmup_iters" not in schedule and "warmup_start_lr" not in schedule


@pytest.mark.parametrize("iters, warmup", [(49, 4), (50, 5), (51, 50)])
def test_warmup_is_clamped(path, iters, warmup):
    assert load_config(path, iters=iters).lr_scheduler_cfg["warmup_iters"] == warmup


def test_opts_are_applied_before_the_check(path):
    config = load_config(path, ["train_dataset.num_classes=7"])
    assert config.model_cfg["num_classes"] == 7
    with pytest.raises(ps.InputError, match="num_classes"):
        load_config(path, ["model.num_classes=5"])


@pytest.mark.parametrize("option", ["iters=abc", "batch_size=0", "model=null", "lr_scheduler=3"])
def test_wrong_types_name_the_key(path, option):
    with pytest.raises(ps.InputError, match=rf"{option.split('=')[0]} must be"):
        load_config(path, [option])


@pytest.mark.parametrize(
    "text, message",
    [
        ("a: [1", r"config\.yaml: is not valid YAML \(while parsing a flow sequence"),
        ("iters: 3", r"config\.yaml: model: is missing; add it, or a _base_ that has it"),
        ("", r"config\.yaml: holds no settings, such as iters: 300"),
    ],
    ids=["syntax", "incomplete", "empty"],
)
def test_bad_files(path, text, message):
    path.write_text(text)
    with pytest.raises(ps.InputError, match=message):
        load_config(path)


def test_missing_file():
    with pytest.raises(ps.InputError, match=r"^nowhere\.yaml: does not exist; the configs of "):
        load_config("nowhere.yaml")


def test_shipped_configs_are_found_from_any_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert load_config("configs/quickstart.yaml").iters == 300
    own = tmp_path / "own.yaml"
    own.write_text("_base_: configs/quickstart.yaml\niters: 7\n")
    config = load_config(own)
    assert (config.iters, config.batch_size) == (7, 8)
    for base in ("configs/absent.yaml", "quickstart.yaml"):
        own.write_text(f"_base_: {base}\n")
        with pytest.raises(ps.InputError, match=f"{own}: .*{base}: does not exist"):
            load_config(own)
    (tmp_path / "configs").mkdir()
    (tmp_path / "configs/quickstart.yaml").write_text("# nothing\n")
    own.write_text("_base_: configs/quickstart.yaml\n")
    with pytest.raises(ps.InputError, match=r"quickstart\.yaml: holds no settings"):
        load_config(own)


@pytest.mark.parametrize(
    "section, option, message",
    [
        ("model", "model.backbone.type=MixVisionTransformer_B9", "MixVisionTransformer_B9"),
        ("model", "model.stage_projection=odd", "SegFormer: cannot be built.*stage_projection"),
        ("model", "model.backbone.pretrained=absent.pdparams", r"absent\.pdparams"),
        (
            "lr_scheduler",  # a negative power would divide by 0 at the end
            "lr_scheduler={type: WarmupPolynomialDecay, learning_rate: 0.1, power: -1}",
            r"WarmupPolynomialDecay: .*power must be at least 0",
        ),
        (
            "lr_scheduler",  # Paddle's warm-up needs learning_rate, which PiecewiseDecay lacks
            "lr_scheduler={type: PiecewiseDecay, boundaries: [1], values: [1, 0.1], "
            "warmup_iters: 5, warmup_start_lr: 0}",
            "'learning_rate' is missing",
        ),
        (
            "lr_scheduler",
            "lr_scheduler={type: WarmupPolynomialDecay, learning_rate: 0.1, pover: 2}",
            "pover",
        ),
        (
            "train_dataset",
            "train_dataset.transforms=[{type: RandomCategoryCrop, crop_size: [8, 8], tries: 0}]",
            "^RandomCategoryCrop: cannot be built: tries must be",
        ),
    ],
)
def test_components_that_cannot_be_built(path, section, option, message):
    with pytest.raises(ps.InputError, match=message):
        build(load_config(path, ["model.backbone.pretrained=null", option]), section)


def test_numbers_that_yaml_reads_as_text(path):
    for text, number in (
        ("6e-5", 6e-5),
        ("6E-5", 6e-5),
        ("+1e+2", 100),
        ("1.e-2", 0.01),
        ("-2e-1", -0.2),
    ):
        path.write_text(TEXT.replace("learning_rate: 0.1", f"learning_rate: {text}"))
        assert load_config(path).lr_scheduler_cfg["learning_rate"] == number
    path.write_text(TEXT.replace("coef: [1]", "coef: [2e-1]"))
    assert load_config(path).loss_cfg["coef"] == [0.2]
    path.write_text(TEXT.replace("pretrained: somewhere", "pretrained: 1e5.pdparams"))
    assert load_config(path).model_cfg["backbone"]["pretrained"] == "1e5.pdparams"
    path.write_text(TEXT)
    with pytest.raises(ps.InputError, match=r"lr_scheduler\.power must be a number"):
        load_config(path, ["lr_scheduler.power=one"])
