"""Reading YAML: without objects and duplicate keys, and within bounds of memory and time."""

import math

import yaml

from .errors import InputError, one_line

MAX_CHARACTERS = 250_000  # PyYAML may take 1 KB and 20 microseconds for each
MAX_EXPANDED = 1_000_000  # values and characters, with aliases expanded

STRING, MERGE, *NUMBERS = (f"tag:yaml.org,2002:{x}" for x in ("str", "merge", "int", "float"))


def parse_yaml(text):
    """Parse a YAML document of plain values.

    Unlike in YAML 1.1, ``1:30`` is text, not 90.

    Args:
        text: The document, of up to 250,000 characters; its aliases may expand to a million.

    Returns:
        Dictionaries, lists, strings, numbers, booleans, dates and None.

    Raises:
        InputError: The text is not valid YAML or too large, has a key twice, or describes objects.
    """
    if len(text) > MAX_CHARACTERS:
        raise InputError(f"is larger than {MAX_CHARACTERS:,} characters; write a shorter config.")
    try:
        loader = _Loader(text)
        root = loader.get_single_node()
        if root is None:
            return None
        if _expanded_size(root, {}) > MAX_EXPANDED:
            raise InputError(
                f"its aliases expand to more than {MAX_EXPANDED:,} characters; write the values "
                "without aliases."
            )
        return loader.construct_document(root)
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: too many digits
        raise InputError(f"is not valid YAML ({one_line(error)}).") from error


class _Loader(yaml.SafeLoader):
    def resolve(self, kind, value, implicit):
        tag = super().resolve(kind, value, implicit)
        return STRING if tag in NUMBERS and ":" in value else tag

    def compose_mapping_node(self, anchor):
        node, lines = super().compose_mapping_node(anchor), {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == MERGE:
                continue
            line, identity = key.start_mark.line + 1, (key.tag, key.value)
            if identity in lines:
                raise InputError(
                    f"line {line} has the key {key.value!r} again, after line {lines[identity]}; "
                    "remove one of them."
                )
            lines[identity] = line
        return node


def _expanded_size(node, sizes):
    """Number of values and characters in a node with aliases expanded; ``sizes`` caches by id."""
    if isinstance(node, yaml.ScalarNode):
        return 1 + len(node.value)
    if id(node) not in sizes:
        sizes[id(node)] = math.inf  # the size of a node that contains itself
        pairs = node.value if isinstance(node, yaml.MappingNode) else [node.value]
        sizes[id(node)] = 1 + sum(_expanded_size(child, sizes) for pair in pairs for child in pair)
    return sizes[id(node)]
