"""Read PaddleSeg configs and build their components."""

from __future__ import annotations

import ast
import contextlib
import json
import logging
import math
import os
import re
from collections.abc import Iterable
from typing import Any

from paddleseg.cvlibs import Config, SegBuilder
from paddleseg.cvlibs.config import merge_config_dicts
from paddleseg.cvlibs.config_checker import ConfigChecker
from paddleseg.utils.utils import CachedProperty, get_in_channels, set_in_channels

from .config_check import OPTIONAL_SECTIONS, check_config
from .errors import InputError, one_line
from .fs import StrPath, configs_dir
from .schedule import WarmupPolynomialDecay
from .yaml_reader import MAX_CHARACTERS, parse_yaml


def load_config(path: StrPath, opts: Iterable[str] = (), **overrides: float | None) -> Config:
    """Read a YAML config with its ``_base_`` files, apply overrides, and check it.

    Args:
        path: The file. If a path ``configs/…`` does not exist, neither in the current folder nor
            beside the file that has it as ``_base_``, the package's config is read.
        opts: Config overrides, ``key=value`` with a dotted key and a value in YAML.
        overrides: ``learning_rate``, ``batch_size`` and ``iters``; None keeps the file's value.

    Raises:
        InputError: The file is missing or malformed, an option names no key, or ``check_config``
            finds an error.
    """
    file = _find_config(os.fspath(path))
    if os.path.islink(file) and not file.endswith((".yaml", ".yml")):
        file = os.path.realpath(file)  # PaddleSeg refuses another ending
    try:
        config = _Config(file, checker=ConfigChecker([]), **overrides)
        for option in opts:
            _set_option(config.dic, option)
        config.dic = _parse_numbers(config.dic)
        check_config(config.dic)
        _set_in_channels(config.dic)
        for key in OPTIONAL_SECTIONS:
            if config.dic.get(key) is None:  # PaddleSeg expects a dictionary if the key exists
                config.dic.pop(key, None)
        Config._build_default_checker().apply_all_rules(config)
    except InputError as error:
        prefix = "" if str(error).startswith(file) else f"{path}: "
        raise InputError(f"{prefix}{error}") from error.__cause__
    except Exception as error:  # PaddleSeg raises AssertionError, KeyError and RuntimeError
        reason = one_line(error).rpartition("the error message is: ")[2]
        raise InputError(f"{path}: {reason}") from error
    _clamp_warmup(config.dic["lr_scheduler"], config.iters)
    return config


class _Config(Config):
    """PaddleSeg's ``Config``, with the package's configs as bases and with errors naming files."""

    @property
    def train_dataset_cfg(self):
        """The section without ``shuffle``, which is the sampler's and no dataset's argument."""
        section = super().train_dataset_cfg
        section.pop("shuffle", None)
        return section

    def _parse_from_yaml(self, path, derived=()):
        """Read a file and its bases, each once; ``derived`` are the files it is a base of."""
        real_path = os.path.realpath(path)
        if real_path in derived:
            raise InputError(f"{path}: is its own _base_, in the end; remove one of these keys.")
        trees = vars(self).setdefault("_trees", {})
        if real_path not in trees:
            tree = _read_yaml(path)
            bases = tree.pop("_base_", None) or []
            bases = [bases] if isinstance(bases, str) else bases
            if not isinstance(bases, list) or not all(isinstance(base, str) for base in bases):
                raise InputError(
                    f"{path}: _base_ must be a file or a list of files, not {bases!r}."
                )
            for base in bases:
                base_path = _find_config(base, os.path.dirname(path))
                base_tree = self._parse_from_yaml(base_path, (*derived, real_path))
                tree = merge_config_dicts(tree, base_tree)
            trees[real_path] = tree
        return trees[real_path]


def _find_config(name, folder=""):
    path = os.path.join(folder, name)
    if os.path.exists(path):
        return path
    configs = configs_dir()
    if not name.startswith("configs/"):
        raise InputError(f"{path}: does not exist; the configs of this package are in {configs}.")
    if not (configs.parent / name).is_file():
        raise InputError(f"{path}: does not exist, nor does {configs.parent / name}.")
    return str(configs.parent / name)


def _read_yaml(path):
    """Read one YAML file, which must hold a dictionary."""
    try:
        with open(path, encoding="utf-8") as file:
            tree = parse_yaml(file.read(MAX_CHARACTERS + 1))
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is not UTF-8 text; save it as UTF-8.") from error
    except InputError as error:
        raise InputError(f"{path}: {error}") from error.__cause__
    if not isinstance(tree, dict):
        raise InputError(f"{path}: holds no settings, such as iters: 300.")
    return tree


def settings(config: Config) -> dict[str, Any]:
    """A JSON-compatible copy of a config's settings; copy before building, which adds keys."""
    return json.loads(json.dumps(config.dic, default=str))


def _parse_numbers(tree, path=""):
    """Convert text like 6e-5 to numbers: YAML 1.1 requires a decimal point in them."""
    if isinstance(tree, dict):
        return {key: _parse_numbers(value, f"{path}.{key}") for key, value in tree.items()}
    if isinstance(tree, list):
        return [_parse_numbers(value, f"{path}[{i}]") for i, value in enumerate(tree)]
    if isinstance(tree, float) and not math.isfinite(tree):
        raise InputError(f"{path[1:]}: must be a number, not {tree}.")
    if isinstance(tree, str) and re.fullmatch(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+", tree):
        return float(tree)
    return tree


def _set_in_channels(tree):
    """Set the model's number of bands to that of the data set, as PaddleSeg does with a warning."""
    channels = tree["train_dataset"].get("img_channels")
    if channels is not None and get_in_channels(tree["model"]) is None:
        tree["model"] = set_in_channels(tree["model"], channels)


def _clamp_warmup(schedule, iters):
    """Remove a warm-up of 0 iterations, and shorten one that is as long as the run.

    Otherwise a short trial of a recipe, such as ``--iters 200``, would never leave the warm-up.
    """
    warmup, short = schedule.get("warmup_iters"), max(1, iters // 10)
    if not warmup:
        schedule.pop("warmup_iters", None)
        schedule.pop("warmup_start_lr", None)
    elif warmup >= iters:
        schedule["warmup_iters"] = short
        logging.getLogger(__name__).warning(
            "The warm-up of %d iterations is as long as the run: shortened to %d", warmup, short
        )


def _set_option(tree, option):
    key, equals, text = option.partition("=")
    if not (key and equals):
        raise InputError(f"--opts {option}: must have the form key=value.")
    if not text.strip():  # as an unset variable of a shell gives
        raise InputError(f"--opts {option}: has no value; write null for none.")
    *parents, last = key.split(".")
    for parent in parents:
        tree = tree.get(parent)
        if not isinstance(tree, dict):
            raise InputError(f"--opts {option}: the config has no section {parent!r}.")
    tree[last] = _parse_value(key, text)


def _parse_value(key, text):
    # As PaddleSeg does; unlike YAML 1.1 it reads 6e-5 and None.
    with contextlib.suppress(ValueError, SyntaxError, MemoryError, RecursionError):
        return ast.literal_eval(text)
    try:
        return parse_yaml(text)
    except InputError as error:
        raise InputError(f"--opts {key}=…: {error}") from error.__cause__


class Builder(SegBuilder):
    """PaddleSeg's builder, without its log messages and with errors that name the component."""

    @classmethod
    def show_msg(cls, name, cfg):
        """Log nothing: PaddleSeg logs each component's config."""

    @CachedProperty
    def lr_scheduler(self):
        """``WarmupPolynomialDecay`` if the config names it, else one of Paddle's schedules."""
        options = self.config.lr_scheduler_cfg
        if options.pop("type") != WarmupPolynomialDecay.__name__:
            return SegBuilder.lr_scheduler.func(self)
        options.setdefault("decay_steps", self.config.iters)
        return self.build_component_impl(WarmupPolynomialDecay, **options)

    def build_component_impl(self, component_class, *args, **kwargs):
        try:
            return component_class(*args, **kwargs)
        except InputError:
            raise
        except Exception as error:
            reason = f"cannot be built: {one_line(error)}"
            raise InputError(f"{component_class.__name__}: {reason}") from error


def build(config: Config, *names: str) -> list[Any]:
    """Build components of a config.

    Args:
        config: PaddleSeg's ``Config``.
        names: Properties of PaddleSeg's ``SegBuilder``, such as ``model``, ``optimizer`` or
            ``train_dataset``, built in this order. They share objects: the optimizer is the
            model's.

    Raises:
        InputError: A component is missing from the config, or cannot be built.
    """
    builder = Builder(config)
    try:
        return [getattr(builder, name) for name in names]
    except (AssertionError, KeyError, RuntimeError, TypeError, ValueError) as error:
        cause = error.__context__  # PaddleSeg's builder turns every exception into a RuntimeError
        if isinstance(cause, InputError):
            raise cause from cause.__cause__
        raise InputError(f"The config cannot be built: {one_line(error)}") from error
