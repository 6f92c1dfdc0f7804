"""What is wrong with a configuration, told before anything is built from it.

What cannot be known passes: to refuse a configuration that works is worse than to leave a mistake
for the builder to find.
"""

import difflib
import inspect
import logging
import math
from collections import ChainMap

from paddle.optimizer import lr
from paddleseg.cvlibs import manager

from .errors import InputError
from .schedule import WarmupPolynomialDecay

SECTIONS = ("model", "train_dataset", "optimizer", "lr_scheduler", "loss")
OPTIONAL_SECTIONS = ("val_dataset", "test_config", "distill_loss")
# Older versions of PaddleSeg read export, and their files are still about.
UNREAD = {
    "to_static_training": "training is dynamic",
    "export": "an export prepares images as val_dataset does",
}
KEYS = {*SECTIONS, *OPTIONAL_SECTIONS, "batch_size", "iters", *UNREAD}
SCHEDULE_NUMBERS = {"learning_rate", "power", "end_lr", "warmup_iters", "warmup_start_lr"}

KINDS = ("MODELS", "BACKBONES", "DATASETS", "TRANSFORMS", "LOSSES", "OPTIMIZERS")
COMPONENTS = ChainMap(*(getattr(manager, kind).components_dict for kind in KINDS))
OPTIMIZERS = manager.OPTIMIZERS.components_dict
SCHEDULES = {name: getattr(lr, name) for name in lr.__all__}
del SCHEDULES["ReduceOnPlateau"]  # steps by a figure, as a loss, which PaddleSeg's builder has not
SCHEDULES["WarmupPolynomialDecay"] = WarmupPolynomialDecay
# PaddleSeg's builder makes these of them; SGD only where it has a momentum, else it takes less.
RENAMED = {"adam": "Adam", "sgd": "Momentum", "SGD": "Momentum"}
TEXTS = ("pretrained", "dataset_root", "train_path", "val_path", "test_path", "mode", "separator")
RATES = ("dropout", "drop_rate", "attn_drop_rate", "drop_path_rate")
SIZES = ("crop_size", "target_size", "short_size", "long_size", "max_size", "max_long", "min_long")
# What of these has another default than None is not what null sets.
NEEDED = (*TEXTS, *RATES, "ignore_index", "embed_dims", "depths", "embedding_dim")
NEEDED += ("backbone", "transforms")


def check_config(tree):
    """Check keys, components, their arguments, the types of values, and that they agree.

    Components of one's own must have been registered with PaddleSeg. A top-level key that resembles
    no known one, such as a home for YAML anchors, gets a warning.

    Args:
        tree: The dictionary of PaddleSeg's ``Config``, before PaddleSeg's rules add keys to it.

    Raises:
        InputError: Something is wrong; the sentence begins with its dotted key.
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
        logging.getLogger(__name__).warning("%s: unknown key of the config; nothing reads it", key)
    for key in UNREAD:
        if tree.get(key):
            logging.getLogger(__name__).warning("%s: is not read; %s", key, UNREAD[key])
    for key in (*SECTIONS, "iters", "batch_size"):
        if key not in tree:
            raise InputError(f"{key}: is missing; add it, or a _base_ that has it.")
    for key in ("model", "train_dataset", "val_dataset"):
        if tree.get(key) is not None:
            _check_component(key, tree[key])
    if "optimizer" in tree:
        _check_component("optimizer", tree["optimizer"], OPTIMIZERS)
    if "lr_scheduler" in tree:
        warmup = {"warmup_iters": None, "warmup_start_lr": None}  # the builder's, of any schedule
        _check_component("lr_scheduler", tree["lr_scheduler"], SCHEDULES, warmup)
    for key in ("loss", "distill_loss"):
        loss = tree.get(key) or {}
        _check_components(f"{key}.types", loss.get("types", []))
        for part in ("types", "coef") if loss else ():
            if part not in loss:
                raise InputError(f"{key}.{part}: is missing; a loss has types and coef.")
        if not _are_numbers(loss.get("coef", [])):
            raise InputError(f"{key}.coef: must be a list of numbers, not {loss['coef']!r}.")
        _check_losses(f"{key}.types", loss.get("types", []), tree)
    if tree["train_dataset"]["type"] == "Dataset":  # PaddleSeg then gives val_dataset's to the loss
        _check_ignored("val_dataset", tree.get("val_dataset") or {}, tree)
    _check_channels(tree)


def _check_sections(tree):
    for key in (*SECTIONS, *OPTIONAL_SECTIONS):
        value = tree.get(key, {})
        if not (isinstance(value, dict) or (value is None and key in OPTIONAL_SECTIONS)):
            raise InputError(f"{key} must be a section, not {value!r}.")
    for key in ("iters", "batch_size"):
        if not is_whole(tree.get(key, 1)):
            raise InputError(f"{key} must be a whole number above 0, not {tree[key]!r}.")
    for key in SCHEDULE_NUMBERS & tree.get("lr_scheduler", {}).keys():
        value = tree["lr_scheduler"][key]
        if not (value is None or (is_number(value) and math.isfinite(value))):
            raise InputError(f"lr_scheduler.{key} must be a number, not {value!r}.")
    # A Dataset's labels have 8 bits, and 255 is ignored. A model may have more classes, for those
    # of PSSLDataset, which takes no num_classes, have not.
    for key, most in (("model", None), ("train_dataset", 255), ("val_dataset", 255)):
        value = (tree.get(key) or {}).get("num_classes", 2)
        if not is_whole(value) or value == 1 or (most and value > most):
            wanted = f"from 2 to {most}" if most else "above 1"
            raise InputError(
                f"{key}.num_classes: must be a whole number {wanted} as the background is a class, "
                f"not {value!r}."
            )


def _check_losses(path, losses, tree):
    """Losses, and those within a loss, against what is known of classes and ignored pixels."""
    classes = tree["model"].get("num_classes") or _of_train_dataset(tree, "num_classes")
    for i, loss in enumerate(losses if isinstance(losses, list) else []):
        if not _is_component(loss):
            continue
        at, weight = f"{path}[{i}]", loss.get("weight")
        _check_ignored(at, loss, tree)
        per_class = loss["type"] == "CrossEntropyLoss" and isinstance(weight, list)
        if per_class and classes is not None and len(weight) != classes:
            raise InputError(
                f"{at}.weight: has {len(weight)} entries for {classes} classes; give one for each."
            )
        _check_losses(f"{at}.losses", loss.get("losses"), tree)


def _check_ignored(path, options, tree):
    """Whether a section ignores the label that the training set does, where both name one."""
    own, ignored = options.get("ignore_index"), _of_train_dataset(tree, "ignore_index")
    if None not in (own, ignored) and own != ignored:
        raise InputError(
            f"{path}.ignore_index: is {own}, but train_dataset's is {ignored}; make them one."
        )


def _check_channels(tree):
    key, section = "model.in_channels", tree["model"]
    if _is_component(section.get("backbone")):
        key, section = "model.backbone.in_channels", section["backbone"]
    wanted, channels = section.get("in_channels"), _of_train_dataset(tree, "img_channels")
    if is_number(wanted) and channels not in (wanted, None):
        raise InputError(
            f"{key}: is {wanted}, but train_dataset's images have {channels} channels; make them "
            "the same."
        )


def _of_train_dataset(tree, key):
    """A number of the training set as it will be built, or None where that is not known."""
    options = tree["train_dataset"]
    component = COMPONENTS[str(options["type"])]
    default = _arguments(component)[0].get(key, getattr(component, key.upper(), None))
    value = options.get(key, default)
    return value if is_number(value) else None


def _check_components(path, items):
    if not isinstance(items, list):
        raise InputError(f"{path}: must be a list of components, not {items!r}.")
    for i, item in enumerate(items):
        _check_component(f"{path}[{i}]", item)


def _check_component(path, options, known=COMPONENTS, more=None):
    if not _is_component(options):
        raise InputError(f"{path}: must be a section with a type, not {options!r}.")
    name = str(options["type"])
    component = known.get(RENAMED.get(name, name))
    if component is None:
        near = _nearest(name, known, 0.6)
        question = f"; did you mean {near}?" if near else "."
        if not near and known is not COMPONENTS:  # which are hundreds
            question = f"; known are {', '.join(sorted(known))}."
        raise InputError(f"{path}.type: there is no component {name}{question}")
    arguments, takes_any = _arguments(component)
    arguments.update(more or {}, type=None)
    for key, value in options.items():
        at = f"{path}.{key}"
        if key in arguments:
            wanted = _type_error(value, arguments[key]) or _value_error(key, value, arguments[key])
            if wanted:
                raise InputError(f"{at}: must be {wanted}, not {value!r}.")
        else:
            # Where any key is taken, only one that hardly differs from a known one is a typo.
            near = _nearest(key, arguments, 0.85 if takes_any else 0.6)
            if near:
                raise InputError(f"{at}: unknown key of {name}; did you mean {near}?")
            if not takes_any:
                raise InputError(f"{at}: unknown key of {name}; known are {', '.join(arguments)}.")
        if key == "transforms" and value is not None:
            _check_components(at, value)
        elif _is_component(value):
            _check_component(at, value)
        elif isinstance(value, list):
            for i, item in enumerate(value):
                if _is_component(item):
                    _check_component(f"{at}[{i}]", item)
    for key in (*NEEDED, "learning_rate"):
        if arguments.get(key) is inspect.Parameter.empty and key not in options:
            raise InputError(f"{path}.{key}: is missing; {name} needs it.")


def _arguments(component):
    """The defaults of a component's arguments by name, and whether it takes any other as well."""
    signatures = [inspect.signature(component)]
    takes_any = any(p.kind is p.VAR_KEYWORD for p in signatures[0].parameters.values())
    if takes_any and inspect.isclass(component):  # to hand them to the classes that it extends
        inits = (vars(c).get("__init__") for c in reversed(component.__mro__))
        signatures = [inspect.signature(init) for init in inits if init]
    parameters = [p for signature in signatures for p in signature.parameters.values()]
    named = (inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY)
    return {p.name: p.default for p in parameters if p.kind in named}, takes_any


def _type_error(value, default):
    """What must stand in this default's place, if value is not it."""
    if value is None:
        return None
    if isinstance(default, bool):
        return None if value in (0, 1) else "true or false"
    if is_number(default):  # ScalePadding has im_padding_value=127.5 and takes one per channel
        return None if is_number(value) or _are_numbers(value) else "a number"
    if isinstance(default, str) and default not in ("auto", "none"):  # which stand for anything
        # LovaszSoftmaxLoss has classes="present" and takes a list of them.
        return None if isinstance(value, (str, list)) else "text"
    if isinstance(default, (list, tuple)):
        return "a list" if isinstance(value, (str, dict)) else None
    return None


def _value_error(key, value, default):
    """The same for names that mean the same wherever they occur."""
    if value is None:
        return "given" if key in NEEDED and default is not None else None
    numbers = value if isinstance(value, (list, tuple)) else [value]
    if key in TEXTS and not isinstance(value, str):
        return "text"
    if key in RATES and _are_numbers(numbers) and not all(0 <= n < 1 for n in numbers):
        return "at least 0 and below 1"
    if key in SIZES and not (_are_numbers(numbers) and all(n > 0 for n in numbers)):
        return "above 0"
    if key in ("embed_dims", "depths") and not all(map(is_whole, numbers)):
        return "a list of whole numbers above 0"
    if key == "embedding_dim" and not is_whole(value):
        return "a whole number above 0"
    if key == "norm_epsilon" and not (is_number(value) and value > 0):
        return "a number above 0"
    if key == "backbone" and not _is_component(value):
        return "a section with a type"
    return None


def _nearest(word, names, likeness):
    lower = {name.lower(): name for name in names}
    found = difflib.get_close_matches(str(word).lower(), lower, 1, likeness)
    return lower[found[0]] if found else None


def _is_component(value):
    return isinstance(value, dict) and "type" in value


def is_number(value):
    """Whether this is a number, which YAML's true and false are not."""
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _are_numbers(value):
    return isinstance(value, (list, tuple)) and all(map(is_number, value))


def is_whole(value):
    """Whether this counts something: a whole number above 0."""
    return is_number(value) and isinstance(value, int) and value > 0
