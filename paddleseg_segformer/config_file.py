"""Reading a file of settings, whatever it turns out to be."""

import math

import yaml

from .errors import InputError, one_line

MAX_YAML_VALUES = 100_000  # aliases count with all that they stand for


def read_settings(path):
    """Read one YAML file of settings.

    Returns:
        Its dictionary.

    Raises:
        InputError: It is missing, no YAML, or no dictionary, or its aliases would fill the memory.
    """
    try:
        with open(path, encoding="utf-8") as file:
            tree = yaml.load(file, Loader=yaml.FullLoader)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: is no text in UTF-8; save it so.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # a number may be too long
        raise InputError(f"{path}: is not valid YAML ({one_line(error)}).") from error
    if not isinstance(tree, dict):
        raise InputError(f"{path}: holds no settings, such as iters: 300.")
    if _count(tree, {}) > MAX_YAML_VALUES:
        raise InputError(
            f"{path}: its aliases expand to more than {MAX_YAML_VALUES:,} values; write out "
            "what they stand for."
        )
    return tree


def _count(tree, counts):
    """The number of a tree's values; ``counts`` holds those of what was seen, by id."""
    if not isinstance(tree, (dict, list)):
        return 1
    if id(tree) not in counts:
        counts[id(tree)] = math.inf  # so it stays of what lies within itself
        parts = tree.values() if isinstance(tree, dict) else tree
        counts[id(tree)] = 1 + sum(_count(part, counts) for part in parts)
    return counts[id(tree)]
