"""Invalid flags, and the config sections of the same meaning."""

from .cases import Case, check, table


def val(*arguments):
    return lambda p: [*p.with_opts(), "--model_path", p.root / "run/best_model", *arguments]


def train(*arguments):
    return lambda p: [*p.train(), *arguments]


def predict(*arguments):
    return lambda p: [*p.predict(p.image()), *arguments]


def export(*arguments):
    def make(workspace):
        paths = ["--save_dir", workspace.out, "--image_path", workspace.image()]
        return ["--model_path", workspace.root / "run/best_model", *paths, *arguments]

    return make


def opts(option, tool="train"):
    return lambda p: p.train(option)


def scenes(*arguments):
    return lambda p: ["--save_dir", p.out, *arguments]


SLIDE = "test_config={{is_slide: true, crop_size: {}, stride: {}}}"
INVALID = [
    Case("no such flag", "train", train("--itres", 3), "unrecognized arguments: --itres 3"),
    Case(
        "not a number",
        "train",
        train("--iters", "few"),
        "argument --iters: 'few' is not a whole number",
    ),
    Case(
        "no config",
        "val",
        lambda p: ["--model_path", "a"],
        "the following arguments are required: --config",
    ),
    Case(
        "no such choice",
        "train",
        train("--precision", "fp8"),
        "argument --precision: invalid choice: 'fp8' (choose from …fp32",
    ),
    Case(
        "a scale of 0",
        "val",
        val("--aug_eval", "--scales", 0),
        "--scales [0.0]: each scale must be a number from 0.01 to 100.",
        new_process=True,
    ),
    Case(
        "a negative scale",
        "val",
        val("--aug_eval", "--scales", -1),
        "--scales [-1.0]: each scale must be a number from 0.01 to 100.",
    ),
    Case(
        "a scale of NaN",
        "val",
        val("--aug_eval", "--scales", "nan"),
        "--scales [nan]: each scale must be a number from 0.01 to 100.",
    ),
    Case(
        "an infinite scale",
        "val",
        val("--aug_eval", "--scales", "inf"),
        "--scales [inf]: each scale must be a number from 0.01 to 100.",
    ),
    Case(
        "a scale of a billion",
        "val",
        val("--aug_eval", "--scales", "1e9"),
        "--scales [1000000000.0]: each scale must be a number from 0.01 to 100.",
    ),
    Case(
        "a tiny scale",
        "val",
        val("--aug_eval", "--scales", "1e-300"),
        "--scales [1e-300]: each scale must be a number from 0.01 to 100.",
    ),
    Case(
        "a scale of a billion, predict",
        "predict",
        predict("--aug_pred", "--scales", "1e9"),
        "--scales [1000000000.0]: each scale must be a number from 0.01 to 100.",
    ),
    Case(
        "sliding windows without a size",
        "val",
        val("--is_slide"),
        "--is_slide needs --crop_size, too.",
    ),
    Case(
        "a window size of 0",
        "val",
        val("--is_slide", "--crop_size", 0, 0, "--stride", 0, 0),
        "--stride [0, 0]: must be positive and at most --crop_size [0, 0]",
    ),
    Case(
        "a negative stride",
        "val",
        val("--is_slide", "--crop_size", 64, 64, "--stride", -1, 1),
        "--stride [-1, 1]: must be positive and at most --crop_size [64, 64]",
    ),
    Case(
        "a stride larger than the window",
        "val",
        val("--is_slide", "--crop_size", 32, 32, "--stride", 64, 64),
        "--stride [64, 64]: must be positive and at most --crop_size [32, 32]",
    ),
    Case(
        "a window with a side of 0",
        "predict",
        predict("--is_slide", "--crop_size", 0, 9, "--stride", 0, 9),
        "--stride [0, 9]: must be positive and at most --crop_size [0, 9]",
    ),
    Case(
        "a window size of text",
        "train",
        opts(SLIDE.format("[a, b]", "[a, b]")),
        "crop_size: must be 2 whole numbers, not ['a', 'b'].",
    ),
    Case(
        "a window with three sides",
        "train",
        opts(SLIDE.format("[9, 9, 9]", "[9, 9]")),
        "crop_size: must be 2 whole numbers, not [9, 9, 9].",
    ),
    Case(
        "an unknown key of test_config",
        "train",
        opts("test_config={aug_evil: true}"),
        "test_config.aug_evil: unknown key",
    ),
    Case(
        "scales of text",
        "train",
        opts("test_config={aug_eval: true, scales: [a]}"),
        "scales: must be a number or a list of numbers, not ['a'].",
    ),
    Case(
        "a negative learning rate",
        "train",
        train("--learning_rate", -1),
        "The config cannot be built: … Invalid learning rate: -1.0",
    ),
    Case(
        "a learning rate of NaN",
        "train",
        train("--learning_rate", "nan"),
        "{}/config.yaml: lr_scheduler.learning_rate: must be a number, not nan.",
    ),
    Case(
        "an infinite learning rate",
        "train",
        train("--learning_rate", "inf"),
        "{}/config.yaml: lr_scheduler.learning_rate: must be a number, not inf.",
    ),
    Case("a negative seed", "train", train("--seed", -1), "--seed -1: must be from 0 to 2^63 - 1."),
    Case(
        "a seed of 70 bits",
        "train",
        train("--seed", 1 << 70),
        "--seed 1180591620717411303424: must be from 0 to 2^63 - 1.",
    ),
    Case(
        "a negative number of checkpoints to keep",
        "train",
        train("--keep_checkpoint_max", -1),
        "--keep_checkpoint_max -1: must be at least 0.",
    ),
    Case(
        "more checkpoints than fit on the disk",
        "train",
        lambda p: [*p.train(f"iters={10**15}"), "--save_interval", 1, "--keep_checkpoint_max", 0],
        "--save_dir {}/out: … are free, but 1000000000000000 checkpoints",
    ),
    Case(
        "both flags to resume",
        "train",
        train("--resume", "--resume_model", "a"),
        "--resume and --resume_model exclude each other",
    ),
    Case(
        "an input size of 0",
        "export",
        export("--input_shape", 1, 3, 0, 0),
        "--input_shape 1 3 0 0: must be 1 3 H W",
    ),
    Case(
        "a huge input size",
        "export",
        export("--input_shape", 1, 3, 10**20, 64),
        "--input_shape 1 3 100000000000000000000 64: must be 1 3 H W, 32 to 16384 pixels a side",
    ),
    Case(
        "too many workers",
        "train",
        train("--num_workers", 10**6),
        "--num_workers 1000000: must be at most 1024.",
    ),
    Case(
        "a huge batch",
        "train",
        train("--batch_size", 10**18),
        "{}/config.yaml: batch_size must be a whole number of at most 1048576, not 10000",
    ),
    Case(
        "an iteration of 70 bits",
        "train",
        opts(f"iters={1 << 70}"),
        "{}/config.yaml: iters must be a whole number of at most 9223372036854775807, not 118",
    ),
    Case(
        "an empty name of pretrained weights",
        "train",
        opts("model.pretrained=''"),
        "{}/config.yaml: model.pretrained: must be text that is not empty, not ''.",
    ),
    Case(
        "an empty list name",
        "train",
        opts("train_dataset.train_path=''"),
        "{}/config.yaml: train_dataset.train_path: must be text that is not empty, not ''.",
    ),
    Case(
        "an input of four channels",
        "export",
        export("--input_shape", 1, 4, 64, 64),
        "--input_shape 1 4 64 64: must be 1 3 H W",
    ),
    Case(
        "an input batch of two",
        "export",
        export("--input_shape", 2, 3, 64, 64),
        "--input_shape 2 3 64 64: must be 1 3 H W",
    ),
    Case(
        "half precision of a Paddle export",
        "export",
        export("--half"),
        "--half: needs --format onnx.",
    ),
    Case(
        "int8 with one image",
        "export",
        export("--int8"),
        "--image_path {}/images/0.png: --int8 needs several images",
    ),
    Case(
        "a missing image",
        "export",
        export("--image_path", "absent.jpg"),
        "absent.jpg: cannot be read as an image (not a file).",
    ),
    Case(
        "tiny scenes",
        "make_scenes",
        scenes("--size", 8, 8),
        "--size: width and height must be from 96 to 8192.",
    ),
    Case(
        "huge scenes",
        "make_scenes",
        scenes("--size", 10**20, 96),
        "--size: width and height must be from 96 to 8192.",
    ),
    Case(
        "a negative number of scenes",
        "make_scenes",
        scenes("--train", -1),
        "--train and --val: must both be from 1 to 1000000.",
    ),
    Case(
        "a huge number of scenes",
        "make_scenes",
        scenes("--train", 10**30),
        "--train and --val: must both be from 1 to 1000000.",
    ),
    Case(
        "no scenes",
        "make_scenes",
        scenes("--train", 0, "--val", 0),
        "--train and --val: must both be from 1 to 1000000.",
    ),
    Case(
        "a negative seed of scenes",
        "make_scenes",
        scenes("--seed", -1),
        "--seed -1: must be at least 0.",
    ),
    Case(
        "0 megapixels",
        "serve",
        lambda p: export("--max_megapixels", 0)(p)[:2] + ["--max_megapixels", 0, "--port", 0],
        "--max_megapixels 0: must be a number above 0.",
    ),
    Case(
        "megapixels of NaN",
        "serve",
        lambda p: export()(p)[:2] + ["--max_megapixels", "nan", "--port", 0],
        "--max_megapixels nan: must be a number above 0.",
    ),
]


EMPTY = [
    ("train", "--config", train("--config", "")),
    ("train", "--save_dir", train("--save_dir", "")),
    ("train", "--resume_model", train("--resume_model", "")),
    ("train", "--opts", lambda p: p.train("")),
    ("val", "--model_path", val("--model_path", "")),
    ("val", "--json", val("--json", "")),
    ("val", "--report", val("--report", "")),
    ("predict", "--image_path", predict("--image_path", "")),
    ("predict", "--save_dir", predict("--save_dir", "")),
    ("predict", "--backend/--runtime", predict("--backend", "")),
    ("export", "--image_path", export("--image_path", "")),
    ("export", "--save_dir", export("--save_dir", "")),
    ("serve", "--host", lambda p: ["--model_path", p.root / "run/best_model", "--host", ""]),
    ("check_dataset", "--config", lambda p: ["--config", ""]),
    ("split_dataset_list", "dataset_root", lambda p: ["", "images", "labels"]),
    ("split_dataset_list", "images_dir_name", lambda p: [p.root, "", "labels"]),
    ("split_dataset_list", "--separator", lambda p: [p.root, "a", "b", "--separator", ""]),
    ("masks_from_colors", "target", lambda p: [p.color_masks(), "colored", ""]),
    ("convert", "source", lambda p: ["", p.out]),
    ("convert", "target", lambda p: [p.root / "run/best_model", ""]),
    ("make_scenes", "--save_dir", scenes("--save_dir", "")),
    ("doctor", "--json", lambda p: ["--json", ""]),
]
INVALID += [
    Case(f"an empty {name} of {tool}", tool, make, f"argument {name}: is empty; see --help.")
    for tool, name, make in EMPTY
]
INVALID += [
    Case(
        f"fractions {fractions}",
        "split_dataset_list",
        lambda p, fractions=fractions: [
            p.root,
            "images",
            "labels",
            "--force",
            "--split",
            *fractions,
        ],
        f"--split {' '.join(fractions)}: must be fractions of train, val and test, with sum 1.",
    )
    for fractions in (("nan", "0", "0"), ("0", "nan", "1"), ("inf", "0", "0"), ("2", "0", "0"))
]


@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)
