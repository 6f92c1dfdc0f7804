"""What makes a site of the repository: the pages beside docs/, the notebook, links to files.

MkDocs sees docs/ alone, and GitHub sees the repository: a link is written as GitHub needs it, and
this module changes it to where the site has what it names.
"""

import json
import os
import re
from pathlib import Path
from posixpath import dirname, join, normpath, relpath

from mkdocs.structure.files import File

ROOT = Path(__file__).parents[1]
# Pages beside docs/, their place in the site, and their name in its navigation.
PAGES = {
    "README.md": ("index.md", None),
    "README_zh.md": ("zh.md", "中文"),
    "CHANGELOG.md": ("changelog.md", "Changes"),
    "CONTRIBUTING.md": ("contributing.md", "Contributing"),
}
NOTEBOOKS = {path.stem: path for path in (ROOT / "docs").glob("*.ipynb")}
LINK = re.compile(r"(\]\()([^)\s#:]+)([)#])")  # not of another site, nor within the page


def on_files(files, config):
    """Add what lies beside docs/: pages, and the files that any page links to."""
    named = str(config.nav)
    for source, (target, title) in PAGES.items():
        if (ROOT / source).exists():
            text = (ROOT / source).read_text(encoding="utf-8")
            files.append(File.generated(config, target, content=text))
            if title:
                config.nav.append({title: target})
    for stem, path in NOTEBOOKS.items():
        files.append(File.generated(config, f"{stem}.md", content=as_markdown(path)))
    for page in files.documentation_pages():
        source = repository_path(page.src_uri)
        for link in LINK.findall(page.content_string):
            path = normpath(join(dirname(source), link[1]))
            inside = path.startswith(("docs/", "..")) or path in PAGES
            if not inside and (ROOT / path).is_file() and path not in files.src_uris:
                files.append(File.generated(config, path, abs_src_path=str(ROOT / path)))
        if page.src_uri not in named and page.src_uri not in str(config.nav):
            guides(config.nav).append(page.src_uri)
    if not guides(config.nav):
        config.nav.remove({"Guides": []})
    return files


def on_page_markdown(markdown, page, config, files):
    """Turn links between files of the repository into links between files of the site."""
    source = page.file.src_uri

    def in_site(link):
        before, target, after = link.groups()
        path = normpath(join(dirname(repository_path(source)), target))
        return f"{before}{relpath(site_path(path), dirname(source) or '.')}{after}"

    return LINK.sub(in_site, markdown)


def repository_path(uri):
    """Where in the repository a page of the site comes from."""
    beside = {target: path for path, (target, _) in PAGES.items()}
    return beside.get(uri) or f"docs/{uri}"


def site_path(path):
    """Where the site has a file of the repository."""
    if path in PAGES:
        return PAGES[path][0]
    path = path[len("docs/") :] if path.startswith("docs/") else path
    return os.path.splitext(path)[0] + ".md" if path.endswith(".ipynb") else path


def guides(nav):
    """The list of the section that takes pages which the configuration does not name."""
    return next(entry["Guides"] for entry in nav if isinstance(entry, dict) and "Guides" in entry)


def as_markdown(path):
    """A notebook as a page: its text, its code, and what the code has shown."""
    parts = []
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        parts.append(source if cell["cell_type"] == "markdown" else f"```python\n{source}\n```")
        for output in cell.get("outputs", ()):
            data = output.get("data", {"text/plain": output.get("text", "")})
            if "image/jpeg" in data:
                picture = "".join(data["image/jpeg"]).replace("\n", "")
                parts.append(f'<img alt="" src="data:image/jpeg;base64,{picture}">')
            else:
                parts.append("```text\n" + "".join(data["text/plain"]).rstrip() + "\n```")
    return "\n\n".join(parts) + "\n"
