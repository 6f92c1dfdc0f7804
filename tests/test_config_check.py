"""Configs with one error each, which must be named with its key, and valid configs."""

import inspect
import logging

import pytest
import yaml
from paddleseg.cvlibs import manager

import paddleseg_segformer as ps
from paddleseg_segformer.config import load_config
from paddleseg_segformer.config_check import check_config

TEXT = """
batch_size: 2
iters: 100
train_dataset:
  type: Dataset
  dataset_root: .
  num_classes: 3
  mode: train
  transforms: [{type: RandomHorizontalFlip}, {type: RandomPaddingCrop, crop_size: [64, 64]}]
optimizer: {type: AdamW, weight_decay: 0.01}
lr_scheduler: {type: WarmupPolynomialDecay, learning_rate: 0.1}
loss: {types: [{type: CrossEntropyLoss}], coef: [1]}
model: {type: SegFormer, embedding_dim: 16, backbone: {type: MixVisionTransformer_B0}}
"""

INVALID = [
    # Keys of the file
    ("optimzer={}", "optimzer: unknown key; did you mean optimizer?"),
    ("Val_Datasets={}", "Val_Datasets: unknown key; did you mean val_dataset?"),
    ("Deploy={}", "Deploy: describes an exported model; give its folder as --model_path, and no "),
    # Components
    (
        "model.type=SegFromer",
        "model.type: there is no component SegFromer; did you mean SegFormer?",
    ),
    ("model.type=segformer", "did you mean SegFormer?"),
    ("model.type=[SegFormer]", "model.type: there is no component ['SegFormer']"),
    ("optimizer.type=RMSProp", "optimizer.type: there is no component RMSProp; known are "),
    ("lr_scheduler.type=poly", "lr_scheduler.type: there is no component poly; known are "),
    ("lr_scheduler.type=SegFormer", "lr_scheduler.type: there is no component SegFormer; known"),
    ("lr_scheduler.type=ReduceOnPlateau", "there is no component ReduceOnPlateau; known are "),
    ("lr_scheduler.type=PolyDecay", "did you mean PolynomialDecay?"),
    ("model.backbone.type=ResNet50_v", "model.backbone.type: there is no component ResNet50_v;"),
    ("train_dataset={tpye: Dataset}", "train_dataset: must be a section with a type, not"),
    # Their arguments
    ("model.droput=0.2", "model.droput: unknown key of SegFormer; did you mean dropout?"),
    ("model.qqqq=0.2", "model.qqqq: unknown key of SegFormer; known are num_classes, backbone, "),
    ("model.backbone.depht=2", "model.backbone.depht: unknown key of MixVisionTransformer_B0; did"),
    ("lr_scheduler.pover=2", "lr_scheduler.pover: unknown key of WarmupPolynomialDecay; did"),
    ("lr_scheduler={type: StepDecay, warmup_iter: 2}", "did you mean warmup_iters?"),
    ("optimizer={type: sgd, momentun: 0.9}", "optimizer.momentun: unknown key of sgd; did you"),
    ("optimizer={type: adam, momentum: 0.9}", "optimizer.momentum: unknown key of adam; known are"),
    (
        "train_dataset.transforms=[{type: Normalize}, {type: RandomPaddingCrop, crop_sizes: 3}]",
        "train_dataset.transforms[1].crop_sizes: unknown key of RandomPaddingCrop; did you mean "
        "crop_size?",
    ),
    ("loss.types=[{type: CrossEntropyLoss, ignor_index: 0}]", "loss.types[0].ignor_index: unknown"),
    (
        "loss.types=[{type: MixedLoss, coef: [1], losses: [{type: DiceLoss, smoth: 1}]}]",
        "loss.types[0].losses[0].smoth: unknown key of DiceLoss; did you mean smooth?",
    ),
    ("model.backbone={type: VisionTransformer, drop_rat: 1}", "did you mean drop_rate?"),
    (
        "model.backbone={type: SwinTransformer_tiny_patch4_window7_224_maskformer, qkv_bia: 1}",
        "did you mean qkv_bias?",
    ),
    ("val_dataset={type: Dataset, mod: val}", "val_dataset.mod: unknown key of Dataset; did you"),
    # The types of their values
    ("model.dropout=abc", "model.dropout: must be a number, not 'abc'."),
    ("model.dropout=true", "model.dropout: must be a number, not True."),
    ("model.dropout=[a]", "model.dropout: must be a number, not ['a']."),
    ("model.dropout={a: 1}", "model.dropout: must be a number, not {'a': 1}."),
    ("model.align_corners='no'", "model.align_corners: must be true or false, not 'no'."),
    ("model.align_corners=[1]", "model.align_corners: must be true or false, not [1]."),
    ("model.align_corners=0.5", "model.align_corners: must be true or false, not 0.5."),
    ("model.stage_projection=3", "model.stage_projection: must be text, not 3."),
    ("model.stage_projection={}", "model.stage_projection: must be text, not {}."),
    ("model.backbone.depths=abc", "model.backbone.depths: must be a list, not 'abc'."),
    ("model.backbone.depths={a: 1}", "model.backbone.depths: must be a list, not {'a': 1}."),
    ("optimizer.beta1=x", "optimizer.beta1: must be a number, not 'x'."),
    *[
        (
            f"optimizer.grad_clip_cfg={{name: ClipGradByGlobalNorm, clip_norm: {value}}}",
            "optimizer.grad_clip_cfg.clip_norm: must be a number above 0, not ",
        )
        for value in (-1, 0, "a", "true")
    ],
    (
        "model.backbone.depths=[1, 1, 1, 1000000000]",
        "model.backbone.depths: must be at most 1000 for each stage, not [1, 1, 1, 1000000000].",
    ),
    ("model.num_classes=3.0", "model.num_classes: must be a whole number above 1 "),
    ("model.num_classes=null", "as the background is a class, not None."),
    ("model.num_classes=1", "model.num_classes: must be a whole number above 1 "),
    ("train_dataset.num_classes=1", "from 2 to 255 as the background is a class, not 1."),
    ("train_dataset.num_classes=256", "train_dataset.num_classes: must be a whole number from 2"),
    ("train_dataset.num_classes=true", "train_dataset.num_classes: must be a whole number from 2"),
    ("val_dataset={type: Dataset, num_classes: 0}", "val_dataset.num_classes: must be a whole"),
    ("loss.coef=1", "loss.coef: must be a list of numbers from 0, not 1."),
    ("loss.coef=[a]", "loss.coef: must be a list of numbers from 0, not ['a']."),
    ("loss.coef=[-1]", "loss.coef: must be a list of numbers from 0, not [-1]."),
    ("loss.coef=[.inf]", "loss.coef[0]: must be a number, not inf."),
    ("distill_loss={types: [], coef: [true]}", "distill_loss.coef: must be a list of numbers"),
    ("distill_loss=3", "distill_loss must be a section, not 3."),
    ("loss.types=[CrossEntropyLoss]", "loss.types[0]: must be a section with a type, not 'Cross"),
    ("train_dataset.transforms={type: Resize}", "train_dataset.transforms: must be a list of comp"),
    ("train_dataset.transforms=[Resize]", "train_dataset.transforms[0]: must be a section with a"),
    (
        "train_dataset.label_map=[255, 1]",
        "train_dataset.label_map: must be a map of values, such as {255: 1}, not [255, 1].",
    ),
    ("train_dataset.train_path=[]", "train_dataset.train_path: must be text, not []."),
    ("train_dataset.train_path=[a, 3]", "train_dataset.train_path: must be text, not ['a', 3]."),
    ("train_dataset.separator=[a]", "train_dataset.separator: must be text, not ['a']."),
    (
        "train_dataset={type: ADE20K, transforms: [], dataset_root: [a, b]}",
        "train_dataset.dataset_root: must be text, not ['a', 'b'].",
    ),
    # Distillation
    ("distillation=output/best_model", "distillation must be a section, not 'output/best_model'."),
    ("distillation={weight: 1}", "distillation.teacher: must be a run's best_model, a checkpoint"),
    ("distillation={teacher: [a]}", "distillation.teacher: must be a run's best_model, a checkp"),
    ("distillation={teacher: a, config: 3}", "distillation.config: must be text, not 3."),
    ("distillation={teacher: a, temprature: 2}", "distillation.temprature: unknown key; did you"),
    ("distillation={teacher: a, q: 2}", "distillation.q: unknown key; known are teacher, config,"),
    ("distillation={teacher: a, weight: -1}", "distillation.weight: must be a number at least 0"),
    ("distillation={teacher: a, weight: x}", "distillation.weight: must be a number at least 0"),
    ("distillation={teacher: a, weight: .inf}", "distillation.weight: must be a number, not inf."),
    ("distillation={teacher: a, temperature: .inf}", "temperature: must be a number, not inf."),
    (
        "distillation={teacher: a, temperature: 0}",
        "distillation.temperature: must be a number above 0, not 0.",
    ),
    # Consistency with the data set
    (
        "loss.types=[{type: CrossEntropyLoss, ignore_index: 0}]",
        "loss.types[0].ignore_index: is 0, but train_dataset's is 255; make them equal.",
    ),
    (
        "loss.types=[{type: MixedLoss, coef: [1, 1], losses: [{type: DiceLoss}, "
        "{type: LovaszSoftmaxLoss, ignore_index: 3}]}]",
        "loss.types[0].losses[1].ignore_index: is 3, but",
    ),
    (
        "val_dataset={type: Dataset, dataset_root: ., mode: val, transforms: [], num_classes: 3, "
        "ignore_index: 0}",
        "val_dataset.ignore_index: is 0, but train_dataset's is 255; make them equal.",
    ),
    (
        "loss.types=[{type: CrossEntropyLoss, weight: [1, 2]}]",
        "loss.types[0].weight: has 2 entries for 3 classes; give one for each.",
    ),
    (
        "loss.types=[{type: CrossEntropyLoss, weight: [1, 2, -3]}]",
        "loss.types[0].weight: must be a list of numbers from 0, not [1, 2, -3].",
    ),
    (
        "loss.types=[{type: CrossEntropyLoss, weight: [1, 2, 3, 4]}]",
        "loss.types[0].weight: has 4 entries for 3 classes; give one for each.",
    ),
    (
        "model={type: BiSeNetV2, in_channels: 1}",
        "model.in_channels: is 1, but train_dataset's images have 3 channels; remove it, or make "
        "them equal.",
    ),
    (
        "model.backbone.in_channels=1",
        "model.backbone.in_channels: is 1, but train_dataset's images have 3 channels; remove it, "
        "or make them equal.",
    ),
    ("train_dataset.img_channels=0", "train_dataset.img_channels: must be a whole number above 0"),
    (
        "val_dataset={type: Dataset, dataset_root: ., num_classes: 3, mode: val, transforms: [], "
        "img_channels: 4}",
        "val_dataset.img_channels: is 4, but train_dataset's is 3; make them equal.",
    ),
    ("lr_scheduler.warmup_iters=[1]", "lr_scheduler.warmup_iters must be a number, not [1]."),
    (f"lr_scheduler.learning_rate=1{'0' * 400}", "lr_scheduler.learning_rate must be a number"),
    ("lr_scheduler={type: WarmupPolynomialDecay}", "lr_scheduler.learning_rate: is missing; Warm"),
    ("model={type: SegFormer, embedding_dim: 8}", "model.backbone: is missing; SegFormer needs it"),
    ("model.backbone=B0", "model.backbone: must be a section with a type, not 'B0'."),
    *[
        (f"{key}={value}", f"{key} must be a whole number above 0, not {shown}.")
        for key in ("iters", "batch_size")
        for value, shown in ((0, 0), (-1, -1), (1.5, 1.5), ("true", True))
    ],
    # Keys that must have a value
    *[
        (f"{key}=null", f"{key}: must be given, not None.")
        for key in (
            "model.backbone",
            "model.dropout",
            "model.backbone.drop_path_rate",
            "train_dataset.dataset_root",
            "train_dataset.mode",
            "train_dataset.separator",
            "train_dataset.transforms",
            "train_dataset.ignore_index",
        )
    ],
    # Paths and the like
    *[
        (f"{key}=3", f"{key}: must be text, not 3.")
        for key in (
            "model.pretrained",
            "model.backbone.pretrained",
            "train_dataset.dataset_root",
            "train_dataset.train_path",
            "train_dataset.val_path",
            "train_dataset.test_path",
            "train_dataset.mode",
            "train_dataset.separator",
        )
    ],
    # Bounds of rates and sizes
    *[
        (f"{key}={value}", f"{key}: must be at least 0 and below 1, not {value}.")
        for key in (
            "model.dropout",
            "model.backbone.drop_rate",
            "model.backbone.attn_drop_rate",
            "model.backbone.drop_path_rate",
        )
        for value in (-0.1, 1, 1.5)
    ],
    *[
        (
            f"train_dataset.transforms=[{{type: {name}, {key}: {value}}}]",
            f"train_dataset.transforms[0].{key}: must be above 0, not {value}.",
        )
        for name, key, values in (
            ("RandomPaddingCrop", "crop_size", ("[0, 64]", "[64, -64]", "['a', 64]")),
            ("RandomCategoryCrop", "crop_size", ("[64, 0]", "[64, [64]]")),
            ("Resize", "target_size", ("[0, 64]", "[64, -1]")),
            ("ResizeToFit", "target_size", ("[2048, 0]", "[-2048, 512]")),
            ("ResizeByShort", "short_size", (0, -1, "[256, 0]")),
            ("ResizeByShort", "max_size", (0, -1)),
            ("ResizeByLong", "long_size", (0, -1)),
            ("LimitLong", "max_long", (0, -1)),
            ("LimitLong", "min_long", (0, -1)),
        )
        for value in values
    ],
    *[
        (f"model.backbone.{key}={value}", f"{key}: must be a list of whole numbers above 0, not ")
        for key in ("embed_dims", "depths")
        for value in ("[2, 2, 0, 2]", "[2, 2, -2, 2]", "[2, 2, 2.5, 2]", "[2, 2, true, 2]")
    ],
    *[
        (f"model.embedding_dim={value}", "model.embedding_dim: must be a whole number above 0, not")
        for value in (0, -8, 2.5)
    ],
    *[
        (
            f"model.backbone.norm_epsilon={value}",
            "norm_epsilon: must be a number above 0 and at most",
        )
        for value in (0, -1e-6, 0.01, "x", "true")
    ],
]

# Valid sections, in place of TEXT's.
VALID = {
    "auxiliary losses": """
        model:
          type: PPLiteSeg
          backbone: {type: STDC1, relative_lr: 0.1, pretrained: https://example.org/a.tar.gz}
          arm_out_chs: [32, 64, 128]
          num_classes: 3
        loss: {types: [{type: OhemCrossEntropyLoss, min_kept: 65000}], coef: [1, 1, 1]}
        """,
    "mixed loss": """
        model:
          type: DeepLabV3P
          backbone: {type: ResNet50_vd, output_stride: 8, multi_grid: [1, 2, 4], pretrained: null}
          aspp_ratios: [1, 12, 24, 36]
        loss:
          types:
            - type: MixedLoss
              losses: [{type: CrossEntropyLoss}, {type: LovaszSoftmaxLoss, classes: [1, 2]}]
              coef: [0.8, 0.2]
          coef: [1]
        distillation: {teacher: output/best_model, config: null, weight: 0, temperature: 2.0}
        """,
    "momentum and steps": """
        model:
          type: OCRNet
          backbone: {type: HRNet_W18}
          backbone_indices: [0]
        optimizer:
          type: SGD
          momentum: 0.9
          weight_decay: 4.0e-5
          grad_clip_cfg: {name: ClipGradByNorm, clip_norm: 1}
        lr_scheduler: {type: PiecewiseDecay, boundaries: [50, 80], values: [0.1, 0.01, 0.001]}
        """,
    "warm-up of Paddle's schedules": """
        optimizer: {type: sgd, weight_decay: 0.0}
        lr_scheduler:
          type: PolynomialDecay
          learning_rate: 0.01
          end_lr: 0
          power: 2
          warmup_iters: 10
          warmup_start_lr: 1.0e-5
        """,
    "adam and a list for each side": """
        optimizer: {type: adam, weight_decay: 0.0002, custom_cfg: null}
        train_dataset:
          type: Cityscapes
          dataset_root: .
          edge: 1
          transforms:
            - {type: ResizeByShort, short_size: [256, 307], max_size: 2048}
            - {type: ScalePadding, target_size: [224, 224], im_padding_value: [127.5, 127.5, 127.5]}
            - {type: RandomDistort, brightness_range: 1, hue_prob: 0}
        val_dataset: null
        """,
    "several lists of transforms": """
        train_dataset:
          type: EG1800
          common_transforms: [{type: RandomAffine, size: [224, 224], translation_offset: 5.6}]
          transforms1: null
          transforms2: [{type: RandomBlur, blur_type: random}]
        """,
    "keys that a constructor ignores or passes on": """
        model:
          type: SegmentationTransformer
          backbone: {type: CAE, img_size: 512, in_channels: 3, init_values: 0.1}
          head: mla
          mlahead_channels: 128
        """,
    "plain sections within a component": """
        model:
          type: SegNeXt
          backbone: {type: MSCAN_T}
          decoder_cfg: {channels: 256, ham_kwargs: {type: 3, MD_R: 16}}
        """,
    "more classes than a label image holds": """
        train_dataset: {type: PSSLDataset, imagenet_root: ., pssl_root: ., transforms: []}
        model: {type: U2Net, num_classes: 1001}
        """,
    "a backbone's own classes": """
        model:
          type: SegFormer
          embedding_dim: 256
          backbone: {type: MixVisionTransformer_B2, num_classes: 1000, depths: [1, 1, 1, 1]}
        """,
    "the decoder width of the backbone's variant": """
        model: {type: SegFormer, num_classes: 3, backbone: {type: MixVisionTransformer_B0}}
        """,
    "a consistent ignore index and number of channels": """
        train_dataset: {type: Dataset, dataset_root: ., mode: train, num_classes: 3,
          img_channels: 1, ignore_index: 9, transforms: []}
        val_dataset: {type: Dataset, dataset_root: ., mode: val, num_classes: 3,
          img_channels: 1, ignore_index: 9, transforms: []}
        model:
          type: SegFormer
          embedding_dim: 8
          backbone: {type: MixVisionTransformer_B0, in_channels: 1}
        loss:
          types: [{type: CrossEntropyLoss, ignore_index: 9, weight: [1, 2, 3]}]
          coef: [1]
        """,
    "a data set with a fixed ignore index and number of classes": """
        train_dataset: {type: Cityscapes, dataset_root: ., mode: train, transforms: []}
        model: {type: BiSeNetV2, num_classes: 19, in_channels: 3}
        loss:
          types: [{type: CrossEntropyLoss, ignore_index: 255}, {type: BCELoss, weight: dynamic}]
          coef: [1, 1]
        """,
    "rates and sizes at their bounds": """
        model:
          type: SegFormer
          num_classes: 2
          dropout: 0
          embedding_dim: 1
          backbone: {type: MixVisionTransformer, drop_rate: 0.0, attn_drop_rate: 0.999,
            drop_path_rate: 0.999, norm_epsilon: 1.0e-300, embed_dims: [1, 1, 1, 1],
            depths: [1, 1, 1, 1], num_heads: [1, 1, 1, 1]}
        train_dataset:
          type: Dataset
          dataset_root: .
          mode: train
          num_classes: 255
          transforms:
            - {type: RandomPaddingCrop, crop_size: [1, 1]}
            - {type: ResizeToFit, target_size: [0.5, 1]}
            - {type: ResizeByShort, short_size: 1, max_size: null}
            - {type: LimitLong, max_long: null, min_long: 1}
        batch_size: 1
        iters: 1
        """,
    "null where it is the default": """
        model: {type: SegFormer, embedding_dim: null, pretrained: null,
          backbone: {type: MixVisionTransformer_B0, pretrained: null, norm_epsilon: null}}
        val_dataset: null
        test_config: null
        """,
    "everything else at the top": """
        to_static_training: false
        test_config: {is_slide: true, crop_size: [512, 512], stride: [341, 341]}
        """,
}


@pytest.fixture
def path(tmp_path):
    (tmp_path / "config.yaml").write_text(TEXT)
    return tmp_path / "config.yaml"


@pytest.mark.parametrize("option, message", INVALID, ids=[option for option, _ in INVALID])
def test_errors_name_the_key(path, option, message):
    with pytest.raises(ps.InputError) as caught:
        load_config(path, [option])
    assert str(caught.value).startswith(f"{path}: ") and message in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("case", VALID)
def test_valid_configs_pass(case, caplog):
    check_config({**yaml.safe_load(TEXT), **yaml.safe_load(VALID[case])})
    assert not caplog.records


def test_losses_are_checked_against_a_data_set_with_fixed_classes():
    tree = yaml.safe_load(TEXT)
    tree["train_dataset"] = {"type": "Cityscapes", "dataset_root": ".", "transforms": []}
    for loss, message in (
        ({"weight": [1, 2]}, "weight: has 2 entries for 19 classes"),
        ({"ignore_index": 0}, "ignore_index: is 0, but train_dataset's is 255"),
    ):
        tree["loss"]["types"] = [{"type": "CrossEntropyLoss", **loss}]
        with pytest.raises(ps.InputError, match=message):
            check_config(tree)


def test_pretrained_may_be_null_where_it_has_no_default(monkeypatch):
    def backbone(pretrained, **options):  # as SeaFormer_tiny of PaddleSeg's development branch
        pass

    monkeypatch.setitem(manager.BACKBONES.components_dict, "Needy", backbone)
    tree = yaml.safe_load(TEXT)
    tree["model"]["backbone"] = {"type": "Needy", "pretrained": None}
    check_config(tree)
    del tree["model"]["backbone"]["pretrained"]
    with pytest.raises(ps.InputError, match="pretrained: is missing; Needy"):
        check_config(tree)


def test_our_configs_pass(request, caplog):
    folder = request.config.rootpath / "configs"
    paths = [path for path in folder.rglob("*.yaml") if path.parent.name != "_base_"]
    assert {path.parent.name for path in paths} == {"configs", "paddleseg", "examples"}
    for path in paths:
        load_config(path)
    records = [r for r in caplog.records if r.name.startswith("paddleseg_segformer")]
    assert not records


@pytest.mark.parametrize(
    "option, warnings",
    [
        (
            "export={transforms: [{type: Resize, target_size: [64, 64]}]}",
            ["export: is not used; an export uses the transforms of val_dataset"],
        ),
        (
            "to_static_training=true",
            ["to_static_training: is not used; training is dynamic, an export is static"],
        ),
        ("to_static_training=false", []),
        (
            "uniform_output_enabled=true",
            ["uniform_output_enabled: is not used; export a checkpoint with tools/export.py"],
        ),
        ("print_mem_info=true", ["print_mem_info: is not used; watch the memory with nvidia-smi"]),
        (
            "log_ranks=0,1",
            ["log_ranks: is not used; the first process logs, the others only their errors"],
        ),
        ("pdx_model_name=a", ["pdx_model_name: is not used; it is for PaddleX alone"]),
        ("hpi_config_path=a", ["hpi_config_path: is not used; it is for PaddleX alone"]),
        (
            "distill_loss={types: [{type: KLLoss}], coef: [3]}",
            [
                "distill_loss: is not used; use the section distillation, whose teacher is a "
                "checkpoint"
            ],
        ),
        ("distillation={teacher: nvidia/segformer-b2-finetuned-ade-512-512}", []),
        ("distillation=null", []),
        ("train_dataset.shuffle=false", []),
    ],
)
def test_unused_sections_are_a_warning(option, warnings, path, caplog):
    with caplog.at_level(logging.WARNING):
        load_config(path, [option])
    assert [r.getMessage() for r in caplog.records if "paddleseg_seg" in r.name] == warnings


def test_a_label_map_of_one_data_set_is_a_warning(path, caplog):
    val = (
        "val_dataset={type: Dataset, dataset_root: ., mode: val, transforms: [], num_classes: 3%s}"
    )
    label_map = ["train_dataset.label_map={0:0,255:1}", val % ", label_map: {255: 1}"]
    tree = load_config(path, label_map).dic
    assert [tree[f"{name}_dataset"]["label_map"][255] for name in ("train", "val")] == [1, 1]
    assert "label_map" not in caplog.text
    load_config(path, [label_map[0], val % ""])
    assert "val_dataset: has no label_map, but train_dataset has;" in caplog.text
    load_config(path, [label_map[1]])
    assert "train_dataset: has no label_map, but val_dataset has;" in caplog.text


def test_shuffle_is_true_or_false_and_no_argument_of_the_dataset(path):
    config = load_config(path, ["train_dataset.shuffle=false"])
    assert "shuffle" not in config.train_dataset_cfg
    assert config.dic["train_dataset"]["shuffle"] is False
    with pytest.raises(
        ps.InputError, match=r"train_dataset\.shuffle: must be true or false, not 7"
    ):
        load_config(path, ["train_dataset.shuffle=7"])


def test_other_unknown_keys_are_a_warning(path, caplog):
    with caplog.at_level(logging.WARNING):
        load_config(path, ["norm={type: Nothing}"])
    assert "norm: unknown key of the config" in caplog.text


def test_the_dictionary_is_not_changed():
    tree = {**yaml.safe_load(TEXT), "val_dataset": None}
    check_config(tree)
    assert tree == {**yaml.safe_load(TEXT), "val_dataset": None}


def test_variants_have_the_arguments_of_the_base_class():
    parameters = inspect.signature(ps.MixVisionTransformer_B2).parameters
    assert parameters.keys() == inspect.signature(ps.MixVisionTransformer).parameters.keys()
    assert list(parameters["depths"].default) == [3, 4, 6, 3]


def test_the_model_takes_the_bands_of_the_data_sets(tmp_path, capfd):
    """Without PaddleSeg's advice to set its in_channels, too."""
    (tmp_path / "config.yaml").write_text(TEXT)
    opts = ["train_dataset.img_channels=4"]
    model = load_config(tmp_path / "config.yaml", opts).model_cfg
    assert model["backbone"]["in_channels"] == 4
    assert "in_channels" not in "".join(capfd.readouterr())
