"""The shipped configs: each has the values of its recipe, and all its components can be built.

The values are from the paper, section 4.1, and where it gives none from its training code, as
docs/recipe.md says. They include the defaults of arguments that a config leaves out.
"""

import copy
import inspect
import logging
from pathlib import Path

import cv2
import numpy as np
import paddle
import pytest

from paddleseg_segformer.config import build, load_config
from paddleseg_segformer.config_check import COMPONENTS, OPTIMIZERS, SCHEDULES
from paddleseg_segformer.data.scenes import write_scenes
from paddleseg_segformer.engine import train
from paddleseg_segformer.inference.test_config import TestConfig

CONFIGS = Path(__file__).parents[1] / "configs"
FILES = sorted(
    path.relative_to(CONFIGS).as_posix()
    for path in CONFIGS.rglob("*.yaml")
    if path.parent.name != "_base_"
)

# The table.
WIDTHS = {"b0": 256, "b1": 256, "b2": 768, "b3": 768, "b4": 768, "b5": 768}
WEIGHTS = "https://bj.bcebos.com/paddleseg/dygraph/backbone/mix_vision_transformer_{}.tar.gz"
NORMALIZE = {"type": "Normalize", "mean": [0.485, 0.456, 0.406], "std": [0.229, 0.224, 0.225]}
FLIP = {"type": "RandomHorizontalFlip", "prob": 0.5}
CROSS_ENTROPY = {
    "type": "CrossEntropyLoss",
    "weight": None,
    "ignore_index": 255,
    "top_k_percent_pixels": 1.0,
    "avg_non_ignore": False,  # the mean over all pixels
}
PAPER = {
    "batch_size": 16,
    "iters": 160_000,
    "optimizer": {
        "type": "AdamW",
        "beta1": 0.9,
        "beta2": 0.999,
        "epsilon": 1e-8,
        "weight_decay": 0.01,
        "grad_clip_cfg": None,
        "custom_cfg": [
            {"name": "linear_", "lr_mult": 10.0},
            {"name": "norm", "weight_decay_mult": 0.0},
        ],
    },
    "lr_scheduler": {
        "type": "WarmupPolynomialDecay",
        "learning_rate": 6e-5,
        "power": 1.0,
        "end_lr": 0.0,
        "warmup_iters": 1500,
        "warmup_start_lr": None,
    },
    "loss": {"types": [CROSS_ENTROPY], "coef": [1]},
}


def augmentation(size):
    """The training transforms, with crops of ``size`` x ``size``."""
    return [
        {
            "type": "ResizeToFit",
            "target_size": [2048, size],
            "ratio_range": [0.5, 2.0],
            "size_divisor": None,
        },
        {
            "type": "RandomCategoryCrop",
            "crop_size": [size, size],
            "category_max_ratio": 0.75,
            "tries": 10,
            "ignore_index": 255,
        },
        FLIP,
        {
            "type": "PhotometricDistortion",
            "brightness": 32,
            "contrast": [0.5, 1.5],
            "saturation": [0.5, 1.5],
            "hue": 18,
        },
        NORMALIZE,
        {
            "type": "Padding",
            "target_size": [size, size],
            "im_padding_value": 0,
            "label_padding_value": 255,
        },
    ]


def whole_image(size):
    """The test transforms, for whole-image inference at ``size``."""
    resize = {"type": "ResizeToFit", "target_size": [2048, size], "ratio_range": None}
    return [{**resize, "size_divisor": 32}, NORMALIZE]


def datasets(name, root, train, val, **options):
    """The sections of both splits, with these transforms."""
    split = {"type": name, "dataset_root": f"data/{root}", "edge": False, **options}
    return {
        "train_dataset": {**split, "mode": "train", "transforms": train},
        "val_dataset": {**split, "mode": "val", "transforms": val},
    }


def segformer(variant, num_classes, **options):
    """The model section: the backbone's ImageNet weights are those of the variant."""
    backbone = {
        "type": f"MixVisionTransformer_{variant.upper()}",
        "pretrained": WEIGHTS.format(variant),
        "in_channels": 3,
        "drop_rate": 0.0,
        "attn_drop_rate": 0.0,
        "drop_path_rate": 0.1,
        "norm_epsilon": None,
    }
    model = {
        "type": "SegFormer",
        "num_classes": num_classes,
        "embedding_dim": WIDTHS[variant],
        "stage_projection": "linear",
        "dropout": 0.1,
        "align_corners": False,
        "pretrained": None,
        "backbone": backbone,
    }
    return {"model": merged(model, options)}


def merged(tree, changes):
    """A nested dictionary with changes; a list is replaced."""
    tree = copy.deepcopy(tree)
    for key, value in changes.items():
        nested = isinstance(value, dict) and isinstance(tree.get(key), dict)
        tree[key] = merged(tree[key], value) if nested else copy.deepcopy(value)
    return tree


ADE20K = {
    size: {**PAPER, **datasets("ADE20K", "ADEChallengeData2016", augmentation(size), whole)}
    for size, whole in ((512, whole_image(512)), (640, whole_image(640)))
}
CITYSCAPES = {
    **PAPER,
    **datasets("Cityscapes", "cityscapes", augmentation(1024), [NORMALIZE]),
    "batch_size": 8,
    "test_config": {"is_slide": True, "crop_size": [1024, 1024], "stride": [768, 768]},
}
MMSEG_HEAD = {
    "embedding_dim": 256,
    "stage_projection": "conv_bn_relu",
    "backbone": {"norm_epsilon": 1e-6},
}
SCRATCH = {"backbone": {"pretrained": None}}
LOVASZ = {
    "type": "MixedLoss",
    "losses": [CROSS_ENTROPY, {"type": "LovaszSoftmaxLoss", "ignore_index": 255}],
    "coef": [0.8, 0.2],
}
RECIPES = {
    "segformer_mit-b5_640x640_160k_ade20k.yaml": {**ADE20K[640], **segformer("b5", 150)},
    "examples/segformer_mit-b2_lovasz_512x512_160k_ade20k.yaml": {
        **ADE20K[512],
        **segformer("b2", 150),
        "loss": {"types": [LOVASZ], "coef": [1]},
    },
    "examples/segformer_mit-b0_few_images.yaml": merged(
        {
            **ADE20K[512],
            **segformer("b0", 150, dropout=0.0, backbone={"pretrained": None, "drop_path_rate": 0}),
        },
        {
            "batch_size": 2,
            "iters": 150,
            "optimizer": {"grad_clip_cfg": {"name": "ClipGradByGlobalNorm", "clip_norm": 1.0}},
            "lr_scheduler": {"learning_rate": 5e-4, "warmup_iters": 10},
            "train_dataset": {
                "transforms": [
                    {"type": "ResizeToFit", "target_size": [2048, 512], "ratio_range": None},
                    {"type": "RandomPaddingCrop", "crop_size": [512, 512]},
                    NORMALIZE,
                ]
            },
        },
    ),
    "quickstart.yaml": merged(
        {
            **PAPER,
            **segformer("b0", 150, **SCRATCH),
            **datasets(
                "ADE20K",
                "scenes",
                [{"type": "RandomPaddingCrop", "crop_size": [128, 128]}, FLIP, NORMALIZE],
                [NORMALIZE],
            ),
        },
        {
            "batch_size": 8,
            "iters": 300,
            "optimizer": {
                "grad_clip_cfg": {"name": "ClipGradByGlobalNorm", "clip_norm": 1.0},
                "custom_cfg": [
                    {"name": "linear_", "lr_mult": 1.0},
                    {"name": "norm", "weight_decay_mult": 0.0},
                ],
            },
            "lr_scheduler": {"learning_rate": 1e-3, "warmup_iters": 20},
        },
    ),
    "segformer_mit-b0_custom_dataset.yaml": merged(
        {
            **PAPER,
            **segformer("b0", 2, backbone={"pretrained": None, "norm_epsilon": 1e-5}),
            **datasets(
                "Dataset",
                "mine",
                [
                    {
                        "type": "ResizeStepScaling",
                        "min_scale_factor": 0.75,
                        "max_scale_factor": 1.5,
                        "scale_step_size": 0,
                    },
                    {"type": "RandomPaddingCrop", "crop_size": [128, 128]},
                    FLIP,
                    {"type": "RandomDistort", "brightness_range": 0.25},
                    NORMALIZE,
                ],
                [{"type": "Resize", "target_size": [192, 144]}, NORMALIZE],
                num_classes=2,
            ),
        },
        {
            "batch_size": 8,
            "iters": 400,
            "optimizer": {
                "grad_clip_cfg": {"name": "ClipGradByGlobalNorm", "clip_norm": 1.0},
            },
            "lr_scheduler": {"learning_rate": 6e-4, "warmup_iters": 20},
            "train_dataset": {"train_path": "data/mine/train.txt"},
            "val_dataset": {"val_path": "data/mine/val.txt"},
        },
    ),
}
for v in WIDTHS:
    RECIPES |= {
        f"segformer_mit-{v}_512x512_160k_ade20k.yaml": {**ADE20K[512], **segformer(v, 150)},
        f"segformer_mmseg-head_mit-{v}_512x512_160k_ade20k.yaml": {
            **ADE20K[512],
            **segformer(v, 150, **MMSEG_HEAD),
        },
        f"segformer_mit-{v}_1024x1024_160k_cityscapes.yaml": {**CITYSCAPES, **segformer(v, 19)},
    }
# Other models of PaddleSeg with MiT: the weights of the losses of their outputs are those of
# PaddleSeg's own configs; the backbone has a tenth of the rate.
OTHER_MODELS = {
    "ann": ("ANN", [1, 0.4]),
    "ccnet": ("CCNet", [1, 0.4]),
    "danet": ("DANet", [1, 1, 1, 0.4]),
    "decoupledsegnet": ("DecoupledSegNet", [1, 1, 25, 1]),
    "deeplabv3": ("DeepLabV3", [1]),
    "deeplabv3p": ("DeepLabV3P", [1]),
    "dmnet": ("DMNet", [1, 0.4]),
    "dnlnet": ("DNLNet", [1]),
    "emanet": ("EMANet", [1]),
    "encnet": ("ENCNet", [1, 0.4, 0.2]),
    "fastfcn": ("FastFCN", [1, 0.4, 0.2]),
    "fcn": ("FCN", [1]),
    "gcnet": ("GCNet", [1, 0.4]),
    "glore": ("GloRe", [1, 0.4]),
    "hrnetw48contrast": ("HRNetW48Contrast", [1, 0.1]),
    "isanet": ("ISANet", [1]),
    "knet": ("KNet", [1, 1, 1, 1]),
    "lraspp": ("LRASPP", [1]),
    "mobileseg": ("MobileSeg", [1, 1, 1]),
    "mscaleocrnet": ("MscaleOCRNet", [1, 0.4, 0.05, 0.05]),
    "ocrnet": ("OCRNet", [1, 0.4]),
    "pfpnnet": ("PFPNNet", [1]),
    "pointrend": ("PointRend", [1, 1]),
    "ppliteseg": ("PPLiteSeg", [1, 1, 1]),
    "pspnet": ("PSPNet", [1, 0.4]),
    "segformer": ("SegFormer", [1]),
    "segnext": ("SegNeXt", [1]),
    "upernet": ("UPerNet", [1]),
    "upernetvitadapter": ("UPerNetViTAdapter", [1, 0.4]),
}
OTHER_LOSSES = {
    "decoupledsegnet": [
        {"type": "OhemCrossEntropyLoss", "min_kept": 100_000},
        {"type": "RelaxBoundaryLoss"},
        {"type": "BCELoss", "weight": "dynamic", "edge_label": True},
        {"type": "OhemEdgeAttentionLoss", "min_kept": 100_000},
    ],
    "encnet": ["CrossEntropyLoss", "CrossEntropyLoss", "SECrossEntropyLoss"],
    "fastfcn": ["CrossEntropyLoss", "CrossEntropyLoss", "SECrossEntropyLoss"],
    "hrnetw48contrast": ["CrossEntropyLoss", "PixelContrastCrossEntropyLoss"],
    "pointrend": ["CrossEntropyLoss", "PointCrossEntropyLoss"],
}


def other_model(name, variant):
    """The recipe of a PaddleSeg model; arguments of its own are not in the table."""
    model_type, coef = OTHER_MODELS[name]
    losses = OTHER_LOSSES.get(name, ["CrossEntropyLoss"] * len(coef))
    changes = {
        "optimizer": {"custom_cfg": [{"name": "backbone", "lr_mult": 0.1}]},
        "lr_scheduler": {"learning_rate": 6e-4},
        "train_dataset": {"edge": name == "decoupledsegnet"},
        "loss": {
            "types": [{"type": loss} if isinstance(loss, str) else loss for loss in losses],
            "coef": coef,
        },
    }
    model = {
        key: value
        for key, value in segformer(variant, 150)["model"].items()
        if key in ("num_classes", "backbone")
    }
    return merged({**ADE20K[512], "model": {"type": model_type, **model}}, changes)


RECIPES |= {f"paddleseg/{name}_mit-b0.yaml": other_model(name, "b0") for name in OTHER_MODELS}
RECIPES |= {
    f"examples/{name}_mit-b2_512x512_160k_ade20k.yaml": other_model(model, "b2")
    for name, model in {"fpn": "pfpnnet", "ppliteseg": "ppliteseg", "upernet": "upernet"}.items()
}


def effective(value, expected):
    """A section with the defaults of its component for those keys that the table has."""
    if isinstance(value, (list, tuple)):
        pairs = expected if isinstance(expected, list) else []
        pairs = [*pairs, *[None] * (len(value) - len(pairs))]
        return [effective(*pair) for pair in zip(value, pairs)]
    if not (isinstance(value, dict) and isinstance(expected, dict)):
        return value
    for known in (COMPONENTS, OPTIMIZERS, SCHEDULES):
        if value.get("type") in known:
            parameters = inspect.signature(known[value["type"]]).parameters
            keys = expected.keys() & parameters.keys()
            value = {**{key: parameters[key].default for key in keys}, **value}
    return {key: effective(item, expected.get(key)) for key, item in value.items()}


def test_every_config_has_a_recipe():
    assert set(FILES) == set(RECIPES)


@pytest.mark.parametrize("file", FILES)
def test_the_values_are_those_of_the_recipe(file):
    expected = RECIPES[file]
    found = effective(load_config(CONFIGS / file).dic, expected)
    if expected["model"]["type"] != "SegFormer" or file.startswith("paddleseg/"):
        found["model"] = {key: found["model"][key] for key in expected["model"]}
    for section in sorted(found.keys() | expected.keys()):
        assert found.get(section) == expected.get(section), section


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Images of 135 x 96 pixels for both splits, in each of the three layouts."""
    root = tmp_path_factory.mktemp("data")
    write_scenes(root, train=2, val=1, size=(135, 96))
    label = np.random.default_rng(0).integers(0, 9, [96, 135], "uint8")
    for split in ("train", "val"):
        for folder, name in (("leftImg8bit", "leftImg8bit"), ("gtFine", "gtFine_labelTrainIds")):
            (root / folder / split / "town").mkdir(parents=True)
            image = label if folder == "gtFine" else np.dstack([label * 20] * 3)
            cv2.imwrite(str(root / f"{folder}/{split}/town/town_{name}.png"), image)
        line = "leftImg8bit/{0}/town/town_leftImg8bit.png gtFine/{0}/town/town_{1}.png\n"
        (root / f"{split}.txt").write_text(line.format(split, "gtFine_labelTrainIds"))
    return root


def load(file, data, *opts, **overrides):
    """A config with this data, without pretrained weights, and with a block per stage."""
    opts = ["model.backbone.pretrained=null", "model.backbone.depths=[1, 1, 1, 1]", *opts]
    for split in ("train", "val"):
        opts.append(f"{split}_dataset.dataset_root={data}")
        if "custom_dataset" in file:
            opts.append(f"{split}_dataset.{split}_path={data}/{split}.txt")
    return load_config(CONFIGS / file, opts, **overrides)


@pytest.mark.parametrize("file", FILES)
def test_all_components_can_be_built(file, data, caplog):
    caplog.set_level(logging.WARNING)
    config = load(file, data)
    names = ("train_dataset", "val_dataset", "model", "optimizer", "loss")
    train_set, val_set, model, optimizer, loss = build(config, *names)
    assert TestConfig.from_config(config).describe()
    assert len(train_set) and len(val_set)
    assert len(loss["types"]) == len(loss["coef"])
    assert not [record for record in caplog.records if record.name.startswith("paddleseg_seg")]
    model.train()
    with paddle.no_grad():
        side = 256 if "isanet" in file else 64  # its padding fails on Paddle 2.6
        outputs = model(paddle.randn([2, 3, side, side]))
    assert len(outputs) == len(loss["coef"])
    groups = [len(group["params"]) for group in optimizer._param_groups]
    assert all(groups[:-1]), "a group without parameters"
    assert sum(groups) == len([p for p in model.parameters() if not p.stop_gradient])


# Sides of the crop, and height and width of the test image, which / 32 has no remainder if resized.
SAMPLES = {
    "segformer_mit-b0_512x512_160k_ade20k.yaml": (512, (512, 736)),  # 720 x 512
    "segformer_mit-b5_640x640_160k_ade20k.yaml": (640, (640, 928)),  # 900 x 640
    "segformer_mit-b0_1024x1024_160k_cityscapes.yaml": (1024, (96, 135)),
    "segformer_mit-b0_custom_dataset.yaml": (128, (144, 192)),
    "quickstart.yaml": (128, (96, 135)),
    "examples/segformer_mit-b0_few_images.yaml": (512, (512, 736)),
}


@pytest.mark.parametrize("file", SAMPLES)
def test_samples_have_the_size_of_the_crop_and_of_the_test_image(file, data):
    crop, size = SAMPLES[file]
    config = load(file, data)
    sample, test = (dataset[0] for dataset in build(config, "train_dataset", "val_dataset"))
    assert sample["img"].shape == (3, crop, crop) and sample["label"].shape == (crop, crop)
    assert test["img"].shape == (3, *size) and test["label"].shape == (1, 96, 135)
    assert np.abs(sample["img"]).max() < 3  # (1 - 0.406) / 0.225 = 2.64


@pytest.mark.slow
@pytest.mark.integration
@pytest.mark.parametrize("name", OTHER_MODELS)
def test_other_models_train(name, data, tmp_path):
    """Their outputs fit the losses of their configs."""
    transforms = "train_dataset.transforms=[{type: Resize, target_size: [128, 128]}]"
    config = load(f"paddleseg/{name}_mit-b0.yaml", data, transforms, iters=1, batch_size=2)
    train(config, save_dir=str(tmp_path))
    assert (tmp_path / "iter_1/model.pdparams").is_file()
