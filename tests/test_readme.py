"""README.md and README_zh.md have the same commands, code, figures and links."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def code(text):
    """Language and lines of each fenced block, without comments."""
    return [
        (language, re.sub(r"\s*#.*", "", block).split("\n"))
        for language, block in re.findall(r"^```(\w+)\n(.*?)^```", text, re.MULTILINE | re.DOTALL)
    ]


def table_code(text):
    """Inline code in each table row: commands and flags."""
    rows = [line for line in text.split("\n") if line.startswith("|")]
    return [re.findall("`[^`]+`", row) for row in rows]


def figures(text):
    return sorted(re.findall(r"\d+\.\d+|\de-\d|\d+,\d{3}", text))


def targets(text):
    return set(re.findall(r"\]\(([^)]+)\)", text))


@pytest.mark.parametrize("extract", [code, table_code, figures])
def test_both_readmes_have_the_same_content(extract):
    english, chinese = extract(read("README.md")), extract(read("README_zh.md"))
    assert english and chinese == english


@pytest.mark.parametrize("name", ["README.md", "README_zh.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_and_headings_exist(name):
    for target in targets(read(name)):
        path, _, anchor = target.partition("#")
        assert target.startswith("https://") or (ROOT / path).exists(), target
        if anchor and not target.startswith("https://"):
            headings = re.findall(r"^#+ (.*)", read(path), re.MULTILINE)
            slugs = [re.sub(r"[^\w -]", "", text).lower().replace(" ", "-") for text in headings]
            assert anchor in slugs, target


def test_both_readmes_link_to_the_same_files():
    english, chinese = targets(read("README.md")), targets(read("README_zh.md"))
    assert "README_zh.md" in english and "README.md" in chinese
    local = [{t for t in own if not t.startswith("https://")} for own in (english, chinese)]
    assert local[0] - {"README_zh.md"} == local[1] - {"README.md"}
