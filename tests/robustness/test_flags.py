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
    Case("no such flag", "train", train("--itres", 3), ["error: ", "--itres 3; see --help."]),
    Case(
        "not a number", "train", train("--iters", "few"), ["error: ", "--iters: ", "'few'; see --"]
    ),
    Case("no config", "val", lambda p: ["--model_path", "a"], "required: --config; see --help."),
    Case("no such choice", "train", train("--precision", "fp8"), ["--precision: ", "fp32"]),
    Case("a scale of 0", "val", val("--aug_eval", "--scales", 0), "--scales", new_process=True),
    Case("a negative scale", "val", val("--aug_eval", "--scales", -1), "--scales"),
    Case("a scale of NaN", "val", val("--aug_eval", "--scales", "nan"), "--scales"),
    Case("an infinite scale", "val", val("--aug_eval", "--scales", "inf"), "--scales"),
    Case("a scale of a billion", "val", val("--aug_eval", "--scales", "1e9"), "--scales"),
    Case("a tiny scale", "val", val("--aug_eval", "--scales", "1e-300"), "--scales"),
    Case(
        "a scale of a billion, predict",
        "predict",
        predict("--aug_pred", "--scales", "1e9"),
        "--scales",
    ),
    Case("sliding windows without a size", "val", val("--is_slide"), "--crop_size"),
    Case(
        "a window size of 0", "val", val("--is_slide", "--crop_size", 0, 0, "--stride", 0, 0), "-"
    ),
    Case(
        "a negative stride",
        "val",
        val("--is_slide", "--crop_size", 64, 64, "--stride", -1, 1),
        "--stride",
    ),
    Case(
        "a stride larger than the window",
        "val",
        val("--is_slide", "--crop_size", 32, 32, "--stride", 64, 64),
        "--stride",
    ),
    Case(
        "a window with a side of 0",
        "predict",
        predict("--is_slide", "--crop_size", 0, 9, "--stride", 0, 9),
        "--crop_size",
    ),
    Case("a window size of text", "train", opts(SLIDE.format("[a, b]", "[a, b]")), "crop_size"),
    Case(
        "a window with three sides", "train", opts(SLIDE.format("[9, 9, 9]", "[9, 9]")), "crop_size"
    ),
    Case(
        "an unknown key of test_config", "train", opts("test_config={aug_evil: true}"), "aug_evil"
    ),
    Case("scales of text", "train", opts("test_config={aug_eval: true, scales: [a]}"), "scales"),
    Case("a negative learning rate", "train", train("--learning_rate", -1), "learning rate"),
    Case("a learning rate of NaN", "train", train("--learning_rate", "nan"), "learning_rate"),
    Case("an infinite learning rate", "train", train("--learning_rate", "inf"), "learning_rate"),
    Case("a negative seed", "train", train("--seed", -1), "--seed"),
    Case("a seed of 70 bits", "train", train("--seed", 1 << 70), "--seed"),
    Case(
        "a negative number of checkpoints to keep",
        "train",
        train("--keep_checkpoint_max", -1),
        "--keep_checkpoint_max",
    ),
    Case(
        "more checkpoints than fit on the disk",
        "train",
        lambda p: [*p.train(f"iters={10**15}"), "--save_interval", 1, "--keep_checkpoint_max", 0],
        "--save_dir",
    ),
    Case("both flags to resume", "train", train("--resume", "--resume_model", "a"), "--resume"),
    Case("an input size of 0", "export", export("--input_shape", 1, 3, 0, 0), "--input_shape"),
    Case(
        "an input of four channels",
        "export",
        export("--input_shape", 1, 4, 64, 64),
        "--input_shape",
    ),
    Case("an input batch of two", "export", export("--input_shape", 2, 3, 64, 64), "--input_shape"),
    Case("half precision of a Paddle export", "export", export("--half"), "--half"),
    Case("a missing image", "export", export("--image_path", "absent.jpg"), "absent.jpg"),
    Case("tiny scenes", "make_scenes", scenes("--size", 8, 8), "--size"),
    Case("a negative number of scenes", "make_scenes", scenes("--train", -1), "--train"),
    Case("no scenes", "make_scenes", scenes("--train", 0, "--val", 0), "--train"),
    Case("a negative seed of scenes", "make_scenes", scenes("--seed", -1), "--seed"),
    Case(
        "0 megapixels",
        "serve",
        lambda p: export("--max_megapixels", 0)(p)[:2] + ["--max_megapixels", 0, "--port", 0],
        "--max_megapixels",
    ),
    Case(
        "megapixels of NaN",
        "serve",
        lambda p: export()(p)[:2] + ["--max_megapixels", "nan", "--port", 0],
        "--max_megapixels",
    ),
]


@table(INVALID)
def test_invalid(case, workspace, tools):
    check(case, workspace, tools)
