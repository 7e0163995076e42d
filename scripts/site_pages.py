"""A hook of MkDocs: README.md, CHANGELOG.md and CONTRIBUTING.md are pages of the site.

Invariant: each text stands in one file of the repository; the site has it with its links made to fit.
"""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

# File of the repository -> page of the site.
PAGES = {"README.md": "index.md", "CHANGELOG.md": "changes.md", "CONTRIBUTING.md": "contributing.md"}


def on_files(files: Files, config: Any) -> Files:
    """Add the pages."""
    root = Path(config["config_file_path"]).parent
    for source, page in PAGES.items():
        text = site_text((root / source).read_text(encoding="utf-8"))
        files.append(File.generated(config, page, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """In code in tables, GitHub needs a bar escaped, and MkDocs would show the backslash."""
    rows = re.compile(r"^\|.*$", re.MULTILINE)
    return rows.sub(lambda row: re.sub(r"`[^`]+`", lambda code: code[0].replace("\\|", "|"), row[0]), markdown)


def site_text(text: str) -> str:
    """The text of a file in the root, with links as the site has them. What leads to no page loses its link."""

    def replace(link: re.Match[str]) -> str:
        text, target = link.groups()
        if "://" in target or target.startswith("#"):
            return link[0]
        if target.startswith("docs/"):
            return f"[{text}]({target.removeprefix('docs/')})"
        return f"[{text}]({PAGES[target]})" if target in PAGES else text

    return re.sub(r"\[([^\]]*)\]\(([^)\s]+)\)", replace, text).replace("[docs/", "[")
