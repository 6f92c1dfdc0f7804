"""Check a config before its components are built.

A check passes if the outcome is uncertain: rejecting a config that works is worse than leaving an
error to the builder.
"""

import difflib
import inspect
import logging
import sys
from collections import ChainMap

from paddle.optimizer import lr
from paddleseg.cvlibs import manager

from .errors import InputError
from .schedule import WarmupPolynomialDecay

logger = logging.getLogger(__name__)

SECTIONS = ("model", "train_dataset", "optimizer", "lr_scheduler", "loss")
OPTIONAL_SECTIONS = ("val_dataset", "test_config", "distill_loss", "distillation")
# Known keys that are not used. Older versions of PaddleSeg read export, newer ones the others.
UNUSED_KEYS = {
    "to_static_training": "training is dynamic, an export is static",
    "export": "an export uses the transforms of val_dataset",
    "uniform_output_enabled": "export a checkpoint with tools/export.py",
    "print_mem_info": "watch the memory with nvidia-smi",
    "log_ranks": "the first process logs, the others only their errors",
    "distill_loss": "use the section distillation, whose teacher is a checkpoint",
    "pdx_model_name": "it is for PaddleX alone",
    "hpi_config_path": "it is for PaddleX alone",
}
KEYS = {*SECTIONS, *OPTIONAL_SECTIONS, "batch_size", "iters", *UNUSED_KEYS}
SCHEDULE_NUMBERS = {"learning_rate", "power", "end_lr", "warmup_iters", "warmup_start_lr"}

REGISTRIES = ("MODELS", "BACKBONES", "DATASETS", "TRANSFORMS", "LOSSES", "OPTIMIZERS")
COMPONENTS = ChainMap(*(getattr(manager, name).components_dict for name in REGISTRIES))
OPTIMIZERS = manager.OPTIMIZERS.components_dict
SCHEDULES = {name: getattr(lr, name) for name in lr.__all__}
del SCHEDULES["ReduceOnPlateau"]  # PaddleSeg passes no metric to its step()
SCHEDULES["WarmupPolynomialDecay"] = WarmupPolynomialDecay
# As PaddleSeg's builder does; it keeps SGD without momentum, which has fewer arguments.
OPTIMIZER_ALIASES = {"adam": "Adam", "sgd": "Momentum", "SGD": "Momentum"}
LIST_KEYS = ("dataset_root", "train_path", "val_path", "test_path")  # of Dataset: text or a list
TEXT_KEYS = (*LIST_KEYS, "pretrained", "mode", "separator")
MAX_ITERS, MAX_BATCH_SIZE = (1 << 63) - 1, 1 << 20  # of what is counted or listed
MAX_DEPTH = 1000  # of a stage; the largest models have fewer than 100 layers
RATE_KEYS = ("dropout", "drop_rate", "attn_drop_rate", "drop_path_rate")
SIZE_KEYS = ("crop_size", "target_size", "short_size", "long_size")
SIZE_KEYS += ("max_size", "max_long", "min_long")
# Keys that must not be null, unless that is their default. Pretrained weights may always be.
NOT_NULL_KEYS = (*LIST_KEYS, "mode", "separator", *RATE_KEYS, "ignore_index", "embed_dims")
NOT_NULL_KEYS += ("depths", "embedding_dim", "backbone", "transforms")


def check_config(tree):
    """Check the keys, the components and their arguments, and the consistency of sections.

    Custom components must be registered with PaddleSeg first. An unknown top-level key is an error
    if it resembles a known one, else a warning: it may hold YAML anchors.

    Args:
        tree: The dictionary of PaddleSeg's ``Config``, before PaddleSeg's rules add keys to it.

    Raises:
        InputError: There is an error; the message begins with the dotted key.
    """
    _check_sections(tree)
    if "Deploy" in tree:
        raise InputError(
            "Deploy: describes an exported model; give its folder as --model_path, and no --config."
        )
    for key in sorted(tree.keys() - KEYS, key=str):
        near = _nearest(key, KEYS, 0.8)
        if near:
            raise InputError(f"{key}: unknown key; did you mean {near}?")
        logger.warning("%s: unknown key of the config; it is not used", key)
    for key, reason in UNUSED_KEYS.items():
        if tree.get(key):
            logger.warning("%s: is not used; %s", key, reason)
    for key in (*SECTIONS, "iters", "batch_size"):
        if key not in tree:
            raise InputError(f"{key}: is missing; add it, or a _base_ that has it.")
    for key in ("model", "train_dataset", "val_dataset"):
        if tree.get(key) is not None:
            extra = {"shuffle": True} if key == "train_dataset" else None
            _check_component(key, tree[key], extra_arguments=extra)
    _check_component("optimizer", tree["optimizer"], OPTIMIZERS)
    clip = tree["optimizer"].get("grad_clip_cfg")  # PaddleSeg checks that it is a section
    norm = clip.get("clip_norm", 1) if isinstance(clip, dict) else 1
    if not (is_number(norm) and norm > 0):  # a negative one would turn the gradients around
        raise InputError(
            f"optimizer.grad_clip_cfg.clip_norm: must be a number above 0, not {norm!r}."
        )
    warmup = {"warmup_iters": None, "warmup_start_lr": None}  # read by the builder
    _check_component("lr_scheduler", tree["lr_scheduler"], SCHEDULES, warmup)
    for key in ("loss", "distill_loss"):
        loss = tree.get(key) or {}
        _check_components(f"{key}.types", loss.get("types", []))
        for name in ("types", "coef") if loss else ():
            if name not in loss:
                raise InputError(f"{key}.{name}: is missing; a loss has types and coef.")
        _check_weights(f"{key}.coef", loss.get("coef", []))
        _check_losses(f"{key}.types", loss.get("types", []), tree)
    if tree["train_dataset"]["type"] == "Dataset":  # PaddleSeg then gives the loss val_dataset's
        _check_ignore_index("val_dataset", tree.get("val_dataset") or {}, tree)
    _check_channels(tree)
    _check_distillation(tree.get("distillation") or {})
    maps = {k: "label_map" in tree[k] for k in ("train_dataset", "val_dataset") if tree.get(k)}
    if len({*maps.values()}) > 1:
        with_map, without = sorted(maps, key=maps.get, reverse=True)
        logger.warning(
            "%s: has no label_map, but %s has; files of the same kind need it in both",
            *(without, with_map),
        )


def _check_sections(tree):
    for key in (*SECTIONS, *OPTIONAL_SECTIONS):
        value = tree.get(key, {})
        if not (isinstance(value, dict) or (value is None and key in OPTIONAL_SECTIONS)):
            raise InputError(f"{key} must be a section, not {value!r}.")
    for key, maximum in (("iters", MAX_ITERS), ("batch_size", MAX_BATCH_SIZE)):
        value = tree.get(key, 1)
        if not is_whole(value) or value > maximum:
            valid = f"of at most {maximum}" if is_whole(value) else "above 0"
            raise InputError(f"{key} must be a whole number {valid}, not {value!r}.")
    for key in SCHEDULE_NUMBERS & tree.get("lr_scheduler", {}).keys():
        value = tree["lr_scheduler"][key]
        if not (value is None or (is_number(value) and abs(value) <= sys.float_info.max)):
            raise InputError(f"lr_scheduler.{key} must be a number, not {value!r}.")
    # Dataset reads 8-bit labels, of which 255 is ignored. A model may have more classes: the labels
    # of PSSLDataset, which has no num_classes, have more bits.
    for key, maximum in (("model", None), ("train_dataset", 255), ("val_dataset", 255)):
        value = (tree.get(key) or {}).get("num_classes", 2)
        if not is_whole(value) or value == 1 or (maximum and value > maximum):
            valid = f"from 2 to {maximum}" if maximum else "above 1"
            raise InputError(
                f"{key}.num_classes: must be a whole number {valid} as the background is a class, "
                f"not {value!r}."
            )


def _check_losses(path, losses, tree):
    """Check class weights and ignore indices of losses, including nested ones."""
    classes = tree["model"].get("num_classes") or _train_dataset_number(tree, "num_classes")
    for i, loss in enumerate(losses if isinstance(losses, list) else []):
        if not _is_component(loss):
            continue
        at, weight = f"{path}[{i}]", loss.get("weight")
        _check_ignore_index(at, loss, tree)
        if isinstance(weight, list):
            _check_weights(f"{at}.weight", weight)
        per_class = loss["type"] == "CrossEntropyLoss" and isinstance(weight, list)
        if per_class and classes is not None and len(weight) != classes:
            raise InputError(
                f"{at}.weight: has {len(weight)} entries for {classes} classes; give one for each."
            )
        _check_losses(f"{at}.losses", loss.get("losses"), tree)


def _check_weights(path, value):
    """Refuse what are no factors of losses; of a negative one, training would raise the loss."""
    if not (_are_numbers(value) and min(value, default=0) >= 0):
        raise InputError(f"{path}: must be a list of numbers from 0, not {value!r}.")


def _check_ignore_index(path, options, tree):
    """Check that a section has the ignore index of the training set, if both are known."""
    actual, expected = options.get("ignore_index"), _train_dataset_number(tree, "ignore_index")
    if None not in (actual, expected) and actual != expected:
        raise InputError(
            f"{path}.ignore_index: is {actual}, but train_dataset's is {expected}; make them equal."
        )


def _check_distillation(section):
    known = ("teacher", "config", "weight", "temperature")
    for key in section:
        if key not in known:
            near = _nearest(key, known, 0.6)
            hint = f"did you mean {near}?" if near else f"known are {', '.join(known)}."
            raise InputError(f"distillation.{key}: unknown key; {hint}")
    if section and not isinstance(section.get("teacher"), str):
        raise InputError(
            "distillation.teacher: must be a run's best_model, a checkpoint or a Hugging Face "
            f"repository, not {section.get('teacher')!r}."
        )
    if not isinstance(section.get("config"), (str, type(None))):
        raise InputError(f"distillation.config: must be text, not {section['config']!r}.")
    for key, valid in (("weight", "at least 0"), ("temperature", "above 0")):
        value = section.get(key, 1)
        minimum = 0 if key == "weight" else sys.float_info.min
        if not (is_number(value) and minimum <= value <= sys.float_info.max):
            raise InputError(f"distillation.{key}: must be a number {valid}, not {value!r}.")


def _check_channels(tree):
    """Check that both data sets have the same number of bands, and the model, if it is given."""
    for path in ("train_dataset", "val_dataset"):
        value = (tree.get(path) or {}).get("img_channels", 1)
        if not is_whole(value):
            raise InputError(f"{path}.img_channels: must be a whole number above 0, not {value!r}.")
    img_channels = _train_dataset_number(tree, "img_channels")
    val_channels = _dataset_number(tree.get("val_dataset"), "img_channels")
    if None not in (img_channels, val_channels) and img_channels != val_channels:
        raise InputError(
            f"val_dataset.img_channels: is {val_channels}, but train_dataset's is {img_channels}; "
            "make them equal."
        )
    key, section = "model.in_channels", tree["model"]
    if _is_component(section.get("backbone")):
        key, section = "model.backbone.in_channels", section["backbone"]
    in_channels = section.get("in_channels")
    if is_number(in_channels) and img_channels not in (in_channels, None):
        raise InputError(
            f"{key}: is {in_channels}, but train_dataset's images have {img_channels} channels; "
            "remove it, or make them equal."
        )


def _train_dataset_number(tree, key):
    """A numeric argument or attribute of the training set, or None if it is not known."""
    return _dataset_number(tree["train_dataset"], key)


def _dataset_number(options, key):
    if options is None:
        return None
    component = COMPONENTS[str(options["type"])]
    default = _arguments(component)[0].get(key, getattr(component, key.upper(), None))
    value = options.get(key, default)
    return value if is_number(value) else None


def _check_components(path, items):
    if not isinstance(items, list):
        raise InputError(f"{path}: must be a list of components, not {items!r}.")
    for i, item in enumerate(items):
        _check_component(f"{path}[{i}]", item)


def _check_component(path, options, known=COMPONENTS, extra_arguments=None):
    if not _is_component(options):
        raise InputError(f"{path}: must be a section with a type, not {options!r}.")
    name = str(options["type"])
    component = known.get(OPTIMIZER_ALIASES.get(name, name))
    if component is None:
        near = _nearest(name, known, 0.6)
        hint = f"; did you mean {near}?" if near else "."
        if not near and known is not COMPONENTS:  # these are hundreds
            hint = f"; known are {', '.join(sorted(known))}."
        raise InputError(f"{path}.type: there is no component {name}{hint}")
    arguments, takes_any = _arguments(component)
    arguments.update(extra_arguments or {}, type=None)
    for key, value in options.items():
        at = f"{path}.{key}"
        if key in arguments:
            several = name == "Dataset" and key in LIST_KEYS and isinstance(value, list) and value
            for item in value if several else [value]:
                if expected := _expected_value(key, item, arguments[key]):
                    raise InputError(f"{at}: must be {expected}, not {value!r}.")
        else:
            # If the component takes any key, only one very similar to a known one is a typo.
            near = _nearest(key, arguments, 0.85 if takes_any else 0.6)
            if near:
                raise InputError(f"{at}: unknown key of {name}; did you mean {near}?")
            if not takes_any:
                raise InputError(f"{at}: unknown key of {name}; known are {', '.join(arguments)}.")
        if key == "transforms" and value is not None:
            _check_components(at, value)
            continue
        for i, item in enumerate(value if isinstance(value, list) else [value]):
            if _is_component(item):
                _check_component(at if item is value else f"{at}[{i}]", item)
    for key in (*NOT_NULL_KEYS, "learning_rate", "pretrained"):
        if arguments.get(key) is inspect.Parameter.empty and key not in options:
            raise InputError(f"{path}.{key}: is missing; {name} needs it.")


def _arguments(component):
    """The defaults of a component's arguments by name, and whether it has ``**kwargs``."""
    signatures = [inspect.signature(component)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signatures[0].parameters.values())
    if takes_any and inspect.isclass(component):  # passed to its base classes
        inits = (vars(c).get("__init__") for c in reversed(component.__mro__))
        signatures = [inspect.signature(init) for init in inits if init]
    parameters = [p for signature in signatures for p in signature.parameters.values()]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in parameters if p.kind in named}, takes_any


def _expected_value(key, value, default):
    """What an argument must be by its default and key, or None if the value is valid."""
    if value is None:
        return "given" if key in NOT_NULL_KEYS and default is not None else None
    if isinstance(default, bool) and value not in (0, 1):
        return "true or false"
    # ScalePadding's im_padding_value may be a list.
    if is_number(default) and not (is_number(value) or _are_numbers(value)):
        return "a number"
    # LovaszSoftmaxLoss takes classes="present" or a list. After "auto" any type may follow.
    is_text = isinstance(default, str) and default not in ("auto", "none")
    if is_text and not isinstance(value, (str, list)):
        return "text"
    if isinstance(default, (list, tuple)) and isinstance(value, (str, dict)):
        return "a list"
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if key in TEXT_KEYS and not isinstance(value, str):
        return "text"
    if key in TEXT_KEYS and value == "" != default:
        return "text that is not empty"
    if key in RATE_KEYS and _are_numbers(numbers) and not all(0 <= n < 1 for n in numbers):
        return "at least 0 and below 1"
    if key in SIZE_KEYS and not (_are_numbers(numbers) and all(n > 0 for n in numbers)):
        return "above 0"
    if key in ("embed_dims", "depths") and not all(map(is_whole, numbers)):
        return "a list of whole numbers above 0"
    if key == "embedding_dim" and not is_whole(value):
        return "a whole number above 0"
    if key == "depths" and max(numbers, default=0) > MAX_DEPTH:
        return f"at most {MAX_DEPTH} for each stage"
    if key == "norm_epsilon" and not (is_number(value) and 0 < value <= 1e-3):
        return "a number above 0 and at most 0.001, as Paddle requires"
    if key == "label_map" and not isinstance(value, dict):
        return "a map of values, such as {255: 1}"
    if key == "backbone" and not _is_component(value):
        return "a section with a type"
    return None


def _nearest(word, names, cutoff):
    lower = {name.lower(): name for name in names}
    matches = difflib.get_close_matches(str(word).lower(), lower, 1, cutoff)
    return lower[matches[0]] if matches else None


def _is_component(value):
    return isinstance(value, dict) and "type" in value


def is_number(value):
    """Whether this is a number; YAML's true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(value):
    return isinstance(value, (list, tuple)) and all(map(is_number, value))


def is_whole(value):
    """Whether this is a whole number above 0."""
    return is_number(value) and isinstance(value, int) and value > 0
