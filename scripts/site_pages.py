"""Pages of the documentation's site: the repository's Markdown, and the sources that it links to; hooks of mkdocs.yml.

Files keep their paths, so that links that work in the repository work on the site: README.md becomes index.html,
docs/METHOD.md becomes docs/METHOD.html. A source file that a page links to becomes a page with its text.
"""

from __future__ import annotations

import re
from pathlib import Path, PurePosixPath
from posixpath import normpath
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

PAGES = ("*.md", "docs/*.md", "docs/results/*.md")
ASSETS = (*(f"docs/{folder}*.{kind}" for folder in ("", "results/") for kind in ("png", "jpg", "svg")), "docs/site/*")
LINK = re.compile(r"(?<=\]\()(?!https?:|#)(?P<path>[^)#\s]+)")
MARK = re.compile(r"^(<!-- .* -->)$", re.MULTILINE)
LANGUAGES = {".py": "python", ".sh": "bash", ".json": "json", ".cff": "yaml"}


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Replaces the files of `docs_dir` by those of the repository, with the theme's as they are."""
    from mkdocs.structure.files import File, InclusionLevel

    root = Path(config.config_file_path).parent
    for file in [file for file in files if file.src_dir == config.docs_dir]:
        files.remove(file)
    for name in list_files(root, (*PAGES, *ASSETS)):
        files.append(File.generated(config, name, abs_src_path=str(root / name)))
    for name in linked_sources(root):
        page = File.generated(config, f"{name}.md", content=source_page(root, name))
        page.inclusion = InclusionLevel.NOT_IN_NAV
        files.append(page)
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Makes links to sources lead to their pages, and sets comments apart, which would join the table below them."""
    folder = PurePosixPath(page.file.src_uri).parent

    def link(match: re.Match[str]) -> str:
        target = normpath((folder / match["path"]).as_posix())
        return match["path"] + (".md" if files.get_file_from_path(f"{target}.md") else "")

    return MARK.sub(r"\n\1\n", LINK.sub(link, markdown))


def list_files(root: Path, patterns: tuple[str, ...]) -> list[str]:
    """Lists the paths below the repository's root that match one of the patterns."""
    return sorted(file.relative_to(root).as_posix() for pattern in patterns for file in root.glob(pattern))


def linked_sources(root: Path) -> list[str]:
    """Lists the files that pages link to and that are neither pages nor pictures."""
    found = set()
    for name in list_files(root, PAGES):
        for match in LINK.finditer((root / name).read_text(encoding="utf-8")):
            target = normpath((PurePosixPath(name).parent / match["path"]).as_posix())
            if (root / target).is_file():
                found.add(target)
    return sorted(found - set(list_files(root, (*PAGES, *ASSETS))))


def source_page(root: Path, name: str) -> str:
    """Builds a page with the text of a file."""
    text = (root / name).read_text(encoding="utf-8")
    return f"# {name}\n\n````{LANGUAGES.get(Path(name).suffix, 'text')}\n{text.rstrip()}\n````\n"
