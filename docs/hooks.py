"""MkDocs hooks: add README.md and its siblings, notebooks and linked files to the site.

MkDocs reads docs/ only, while links are written relative to the repository, as GitHub needs them.
The hooks rewrite them to the paths in the site.
"""

import json
import os
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Pages outside docs/: their path in the site, and their title in the navigation.
PAGES = {
    "README.md": ("index.md", None),
    "README_zh.md": ("zh.md", "中文"),
    "CHANGELOG.md": ("changelog.md", "Changelog"),
    "CONTRIBUTING.md": ("contributing.md", "Contributing"),
}
NOTEBOOKS = {path.stem: path for path in (ROOT / "docs").glob("*.ipynb")}
LINK = re.compile(r"(\]\()([^)\s#:]+)([)#])")  # relative links to files


def on_files(files, config):
    """Add the pages outside docs/, the notebooks, and the files that any page links to."""
    for source, (target, title) in PAGES.items():
        text = (ROOT / source).read_text(encoding="utf-8")
        files.append(File.generated(config, target, content=text))
        if title:
            config.nav.append({title: target})
    for stem, path in NOTEBOOKS.items():
        files.append(File.generated(config, f"{stem}.md", content=notebook_to_markdown(path)))
    for page in files.documentation_pages():
        source = repository_path(page.src_uri)
        for link in LINK.findall(page.content_string):
            path = normpath(join(dirname(source), link[1]))
            in_site = path.startswith(("docs/", "..")) or path in PAGES
            if not in_site and (ROOT / path).is_file() and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
    return files


def on_page_markdown(markdown, page, config, files):
    """Replace links between files of the repository by links between files of the site."""
    source = page.file.src_uri

    def to_site(link):
        before, target, after = link.groups()
        path = normpath(join(dirname(repository_path(source)), target))
        return f"{before}{relpath(site_path(path), dirname(source) or '.')}{after}"

    return LINK.sub(to_site, markdown)


def repository_path(uri):
    """The path in the repository of a page of the site."""
    outside = {target: path for path, (target, _) in PAGES.items()}
    return outside.get(uri) or f"docs/{uri}"


def site_path(path):
    """The path in the site of a file of the repository."""
    if path in PAGES:
        return PAGES[path][0]
    path = path.removeprefix("docs/")
    return os.path.splitext(path)[0] + ".md" if path.endswith(".ipynb") else path


def notebook_to_markdown(path):
    """A notebook as a page: text, code and outputs."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/jpeg" in data:
                image = "".join(data["image/jpeg"]).replace("\n", "")
                parts.append(f'<img alt="" src="data:image/jpeg;base64,{image}">')
            else:
                parts.append("```text\n" + "".join(data["text/plain"]).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"
