"""Reading PaddleSeg's configuration files and building what they describe."""

from __future__ import annotations

import ast
import json
import logging
import math
import os
import re
from collections.abc import Iterable
from typing import Any

import yaml
from paddleseg.cvlibs import Config, SegBuilder
from paddleseg.cvlibs.config import merge_config_dicts
from paddleseg.cvlibs.config_checker import ConfigChecker
from paddleseg.utils.utils import CachedProperty

from .config_check import OPTIONAL_SECTIONS, check_config
from .config_file import read_settings
from .errors import InputError, one_line
from .fs import StrPath, package_dir
from .schedule import WarmupPolynomialDecay


def load_config(path: StrPath, opts: Iterable[str] = (), **overrides: float | None) -> Config:
    """Read a YAML configuration with its ``_base_`` files.

    Args:
        path: The file. Where no file ``configs/…`` is, neither here nor beside a file that has it
            as ``_base_``, the one that comes with the package is meant.
        opts: ``key=value`` strings; a key is dotted, a value is read as YAML (``null`` or ``None``
            sets nothing).
        overrides: PaddleSeg's ``learning_rate``, ``batch_size``, ``iters``; None leaves the file's.

    Returns:
        PaddleSeg's ``Config``.

    Raises:
        InputError: The file is missing or malformed, an option names no key, or ``check_config``
            finds something wrong.
    """
    file = _find(os.fspath(path))
    try:
        config = _Config(file, checker=ConfigChecker([]), **overrides)
        for option in opts:
            _set_option(config.dic, option)
        config.dic = _read_numbers(config.dic)
        check_config(config.dic)
        for key in OPTIONAL_SECTIONS:
            if config.dic.get(key) is None:  # which PaddleSeg would take for a section
                config.dic.pop(key, None)
        Config._build_default_checker().apply_all_rules(config)
    except InputError as error:
        text = str(error)
        named = text.startswith(file)  # as errors of reading are, by that file or its base
        raise InputError(text if named else f"{path}: {text}") from error.__cause__
    except Exception as error:  # PaddleSeg reports by assert, KeyError and RuntimeError alike
        reason = one_line(error).rpartition("the error message is: ")[2]
        raise InputError(f"{path}: {reason}") from error
    _clamp_warmup(config.dic["lr_scheduler"], config.iters)
    return config


class _Config(Config):
    """PaddleSeg's, with files that are found with the package, too, and that errors name."""

    @classmethod
    def _parse_from_yaml(cls, path, above=()):
        if os.path.realpath(path) in above:
            raise InputError(f"{path}: is its own _base_, in the end; remove one of these keys.")
        above = (*above, os.path.realpath(path))
        tree = read_settings(path)
        bases = tree.pop("_base_", None) or []
        bases = [bases] if isinstance(bases, str) else bases
        if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
            raise InputError(f"{path}: _base_ must be a file or a list of files, not {bases!r}.")
        for base in bases:
            found = cls._parse_from_yaml(_find(base, os.path.dirname(path)), above)
            tree = merge_config_dicts(tree, found)
        return tree


def _find(name, folder=""):
    path = os.path.join(folder, name)
    if os.path.exists(path):
        return path
    ours = package_dir("configs")
    if not name.startswith("configs/"):
        raise InputError(f"{path}: does not exist; the configs of this package are in {ours}.")
    if not (ours.parent / name).is_file():
        raise InputError(f"{path}: does not exist, nor does {ours.parent / name}.")
    return str(ours.parent / name)


def settings(config: Config) -> dict[str, Any]:
    """A configuration's settings as JSON has them; to be taken before parts are built from it.

    Args:
        config: PaddleSeg's ``Config``, whose dictionaries building adds to.
    """
    return json.loads(json.dumps(config.dic, default=str))


def _read_numbers(tree, path=""):
    """The same tree with its numbers: YAML 1.1 takes 6e-5, without a point, for text."""
    if isinstance(tree, dict):
        return {key: _read_numbers(value, f"{path}.{key}") for key, value in tree.items()}
    if isinstance(tree, list):
        return [_read_numbers(value, f"{path}[{i}]") for i, value in enumerate(tree)]
    if isinstance(tree, float) and math.isnan(tree):
        raise InputError(f"{path[1:]}: must be a number, not nan.")
    if isinstance(tree, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", tree):
        return float(tree)
    return tree


def _clamp_warmup(schedule, iters):
    """No warm-up where it is 0 or null, and none that lasts as long as the run.

    A trial of a long recipe, with ``--iters 200``, would never leave the recipe's warm-up.
    """
    warmup = schedule.get("warmup_iters")
    if not warmup:
        schedule.pop("warmup_iters", None)
        schedule.pop("warmup_start_lr", None)
    elif warmup >= iters:
        schedule["warmup_iters"] = max(1, iters // 10)
        logging.getLogger(__name__).warning(
            "The warm-up of %d iterations is as long as the run: shortened to %d",
            warmup,
            schedule["warmup_iters"],
        )


def _set_option(tree, option):
    key, equals, text = option.partition("=")
    if not (key and equals):
        raise InputError(f"--opts {option}: must have the form key=value.")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.get(parent)
        if not isinstance(tree, dict):
            raise InputError(f"--opts {option}: the config has no section {parent!r}.")
    tree[last] = _parse_value(key, text)


def _parse_value(key, text):
    try:  # PaddleSeg's way: unlike YAML 1.1 it reads 6e-5 as a number
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        pass
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number may be too long
        raise InputError(f"--opts {key}=…: is not valid YAML ({one_line(error)}).") from error


class Builder(SegBuilder):
    """PaddleSeg's builder, silent, and with errors that name the component at fault."""

    @classmethod
    def show_msg(cls, name, cfg):
        """Nothing: one run would fill pages."""

    @CachedProperty
    def lr_scheduler(self):
        """Our own schedule where the config names it, else one of Paddle's."""
        options = self.config.lr_scheduler_cfg
        if options.pop("type") != WarmupPolynomialDecay.__name__:
            return SegBuilder.lr_scheduler.func(self)
        options.setdefault("decay_steps", self.config.iters)
        return self.build_component_impl(WarmupPolynomialDecay, **options)

    def build_component_impl(self, component_class, *args, **kwargs):
        try:
            return component_class(*args, **kwargs)
        except InputError as error:
            raise _BuildError(error) from error
        except Exception as error:
            name = component_class.__name__
            raise _BuildError(InputError(f"{name}: cannot be built: {one_line(error)}")) from error


class _BuildError(BaseException):
    """Carries an InputError past PaddleSeg's builder, which turns every Exception into another."""


def build(config: Config, *names: str) -> list[Any]:
    """Build parts of a configuration.

    Args:
        config: PaddleSeg's ``Config``.
        names: What to build, in this order; properties of PaddleSeg's ``SegBuilder``, such as
            ``model``, ``optimizer``, ``train_dataset``.

    Returns:
        A list of the parts. Parts that share another, as optimizer and model do, share the object.

    Raises:
        InputError: A part is missing from the configuration, or cannot be built.
    """
    builder = Builder(config)
    try:
        return [getattr(builder, name) for name in names]
    except _BuildError as told:
        raise told.args[0] from told.__cause__
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        raise InputError(f"The config cannot be built: {one_line(error)}") from error
