"""Flags that are wrong, and sections of the configuration that say the same."""

from .cases import Case, check, table


def val(*arguments):
    return lambda p: [*p.with_opts(), "--model_path", p.root / "run/best_model", *arguments]


def train(*arguments):
    return lambda p: [*p.train(), *arguments]


def predict(*arguments):
    return lambda p: [*p.predict(p.image()), *arguments]


def export(*arguments):
    def make(place):
        paths = ["--save_dir", place.out, "--image_path", place.image()]
        return ["--model_path", place.root / "run/best_model", *paths, *arguments]

    return make


def opts(option, tool="train"):
    return lambda p: p.train(option)


def scenes(*arguments):
    return lambda p: ["--save_dir", p.out, *arguments]


SLIDE = "test_config={{is_slide: true, crop_size: {}, stride: {}}}"
WRONG = [
    Case("no such flag", "train", train("--itres", 3), ["error: ", "--itres 3; see --help."]),
    Case("no number", "train", train("--iters", "few"), ["error: ", "--iters: ", "'few'; see --"]),
    Case("no config", "val", lambda p: ["--model_path", "a"], "required: --config; see --help."),
    Case("no such choice", "train", train("--precision", "fp8"), ["--precision: ", "fp32"]),
    Case("no scale", "val", val("--aug_eval", "--scales", 0), "--scales", alone=True),
    Case("a scale below nothing", "val", val("--aug_eval", "--scales", -1), "--scales"),
    Case("a scale that is no number", "val", val("--aug_eval", "--scales", "nan"), "--scales"),
    Case("a scale without end", "val", val("--aug_eval", "--scales", "inf"), "--scales"),
    Case("a scale of billions", "val", val("--aug_eval", "--scales", "1e9"), "--scales"),
    Case("a scale of next to nothing", "val", val("--aug_eval", "--scales", "1e-300"), "--scales"),
    Case("a billion to predict", "predict", predict("--aug_pred", "--scales", "1e9"), "--scales"),
    Case("windows without a size", "val", val("--is_slide"), "--crop_size"),
    Case(
        "windows of nothing", "val", val("--is_slide", "--crop_size", 0, 0, "--stride", 0, 0), "-"
    ),
    Case(
        "a stride below nothing",
        "val",
        val("--is_slide", "--crop_size", 64, 64, "--stride", -1, 1),
        "--stride",
    ),
    Case("gaps", "val", val("--is_slide", "--crop_size", 32, 32, "--stride", 64, 64), "--stride"),
    Case(
        "tiny windows",
        "predict",
        predict("--is_slide", "--crop_size", 0, 9, "--stride", 0, 9),
        "--crop_size",
    ),
    Case("windows of words", "train", opts(SLIDE.format("[a, b]", "[a, b]")), "crop_size"),
    Case("windows of three sides", "train", opts(SLIDE.format("[9, 9, 9]", "[9, 9]")), "crop_size"),
    Case("an unknown test", "train", opts("test_config={aug_evil: true}"), "aug_evil"),
    Case("scales of words", "train", opts("test_config={aug_eval: true, scales: [a]}"), "scales"),
    Case("a rate below nothing", "train", train("--learning_rate", -1), "learning rate"),
    Case("a rate that is no number", "train", train("--learning_rate", "nan"), "learning_rate"),
    Case("a rate without end", "train", train("--learning_rate", "inf"), "learning_rate"),
    Case("a seed below nothing", "train", train("--seed", -1), "--seed"),
    Case("a seed beyond bits", "train", train("--seed", 1 << 70), "--seed"),
    Case(
        "keeping fewer than none",
        "train",
        train("--keep_checkpoint_max", -1),
        "--keep_checkpoint_max",
    ),
    Case(
        "more than fits on the disk",
        "train",
        lambda p: [*p.train(f"iters={10**15}"), "--save_interval", 1, "--keep_checkpoint_max", 0],
        "--save_dir",
    ),
    Case("both ways to resume", "train", train("--resume", "--resume_model", "a"), "--resume"),
    Case("an input of no size", "export", export("--input_shape", 1, 3, 0, 0), "--input_shape"),
    Case(
        "an input of four channels",
        "export",
        export("--input_shape", 1, 4, 64, 64),
        "--input_shape",
    ),
    Case("an input of two", "export", export("--input_shape", 2, 3, 64, 64), "--input_shape"),
    Case("half of Paddle's", "export", export("--half"), "--half"),
    Case("an image that is missing", "export", export("--image_path", "absent.jpg"), "absent.jpg"),
    Case("tiny scenes", "make_scenes", scenes("--size", 8, 8), "--size"),
    Case("scenes below nothing", "make_scenes", scenes("--train", -1), "--train"),
    Case("no scenes at all", "make_scenes", scenes("--train", 0, "--val", 0), "--train"),
    Case("a scene's seed below nothing", "make_scenes", scenes("--seed", -1), "--seed"),
    Case(
        "no megapixels",
        "serve",
        lambda p: export("--max_megapixels", 0)(p)[:2] + ["--max_megapixels", 0, "--port", 0],
        "--max_megapixels",
    ),
    Case(
        "megapixels that are no number",
        "serve",
        lambda p: export()(p)[:2] + ["--max_megapixels", "nan", "--port", 0],
        "--max_megapixels",
    ),
]


@table(WRONG)
def test_wrong(case, place, tools):
    check(case, place, tools)
