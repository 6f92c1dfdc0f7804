"""The manifest of a checkpoint: its format, and the checks before an entry is used."""

import json

from ..errors import InputError

MANIFEST = "manifest.json"
# To be raised where an older program would misread what this one writes. Manifests without it, of
# before it was introduced, differ in nothing else.
FORMAT = 1
MAX_BYTES = 16 << 20
MAX_LEVELS = 50  # of a config's nested sections


class ManifestError(Exception):
    """What is wrong with a manifest: a sentence without its end."""


def parse(path):
    """The content of a ``manifest.json``, whose entries are not checked.

    Raises:
        ManifestError: It is missing, or is no JSON object.
    """
    try:
        if not path.is_file() or path.stat().st_size > MAX_BYTES:
            raise ValueError
        content = json.loads(path.read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise ValueError
    except (OSError, ValueError, RecursionError) as error:
        raise ManifestError(f"{MANIFEST} is missing or unreadable") from error
    return content


def check(content, keys, path):
    """Check entries of a manifest, which is in the file ``path``.

    Raises:
        ManifestError: An entry is missing, or has the wrong type or an impossible value.
        InputError: The manifest is of a newer format.
    """
    version = content.get("format", 0)
    if not _is_count(version):
        raise ManifestError(f"{MANIFEST} has no valid format")
    if version > FORMAT:
        raise InputError(
            f"{path}: is of a newer version of this program (format {version}, where this one "
            f"reads up to {FORMAT}); update the program."
        )
    for key in keys:
        is_valid, expected = ENTRIES[key]
        if not is_valid(content.get(key)):
            raise ManifestError(f"{MANIFEST} has no valid {key}, which must be {expected}")
    if "palette" in keys and len(content["palette"]) < len(content["classes"]):
        raise ManifestError(f"{MANIFEST} has fewer colors in palette than classes")
    if "iteration" in keys:
        best = (value for key, value in content["best"].items() if key.endswith("iteration"))
        if max(content["evaluated"], *best, 0) > content["iteration"]:
            raise ManifestError(f"{MANIFEST} has an evaluation after its iteration")


def _is_text(value):
    return isinstance(value, str)


def _is_count(value, limit=1 << 63):
    return type(value) is int and 0 <= value < limit


def _is_number(value):
    return type(value) in (int, float) and -1e300 < value < 1e300  # not so of NaN


def _is_tree(value, levels=MAX_LEVELS):
    """Whether plain JSON is nested no deeper than this."""
    if not isinstance(value, (dict, list)):
        return True
    children = value.values() if isinstance(value, dict) else value
    return levels > 0 and all(_is_tree(child, levels - 1) for child in children)


def _list_of(is_valid):
    return lambda value: isinstance(value, list) and all(map(is_valid, value))


def _dict_of(is_valid):
    return lambda value: isinstance(value, dict) and all(map(is_valid, value.values()))


def _is_section(value):
    return isinstance(value, dict) and _is_tree(value)


def _is_color(value):
    return _list_of(lambda x: _is_count(x, 256))(value) and len(value) == 3


def _are_names(value):
    return _dict_of(_is_text)(value) and len({*value.values()}) == len(value)


def _is_best(value):
    if not _dict_of(_is_number)(value):
        return False
    iterations = {key: x for key, x in value.items() if key in ("iteration", "ema_iteration")}
    scores = {key.replace("iteration", "miou") for key in iterations}
    return {*value} == {*iterations, *scores} and all(map(_is_count, iterations.values()))


def _is_scaler(value):
    return _dict_of(lambda x: isinstance(x, bool) or _is_number(x))(value) and (
        not value or {"scale", "incr_ratio", "decr_ratio", "incr_count", "decr_count"} <= {*value}
    )


def _are_files(value):
    return _dict_of(lambda x: isinstance(x, dict) and _is_count(x.get("bytes")))(value) and all(
        name and not {*name} & {*"/\\\0"} for name in value
    )


_COUNT = _is_count, "a whole number from 0"
_SECTION = _is_section, f"an object of at most {MAX_LEVELS} levels"
# Of each entry: whether a value is valid, and what it must be. None stands for a missing one.
ENTRIES = {
    "config": _SECTION,
    "classes": (_list_of(_is_text), "a list of names"),
    "palette": (_list_of(_is_color), "a list of colors"),
    # Missing in the first manifests.
    "image_types": (lambda x: x is None or _list_of(_is_text)(x), "a list of types"),
    "arrangement": _SECTION,
    "versions": _SECTION,
    "optimizer": (_is_text, "a name"),
    "parameters": (_are_names, "an object with a different name for each parameter"),
    "run": (_is_text, "a name"),
    "seed": _COUNT,
    "iteration": _COUNT,
    "samples": _COUNT,
    "evaluated": _COUNT,
    "evaluations_since_best": _COUNT,
    "skipped_in_a_row": _COUNT,
    "skipped": (lambda x: _dict_of(_is_count)(x) and {*x} == {"steps", "samples"}, "two counts"),
    "best": (_is_best, "pairs of an mIoU and an iteration"),
    "seconds": (lambda x: _is_number(x) and x >= 0, "a number from 0"),
    "scaler": (_is_scaler, "the state of the loss scaling"),
    "files": (_are_files, "an object with the size and the checksum of each file"),
}
