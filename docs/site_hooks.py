"""Hooks that make one site of the pages, the README and the sources (``mkdocs.yml`` names this file).

Links in the pages lead to files of the repository, so that they work where the repository is browsed. In the site they
lead to a module's reference, or to a page that shows the file.
"""

import os
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = "nasrec_torchrec"
# Pages in the root of the repository, by their file in the site.
ROOT_PAGES = {
    "README.md": "index.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
    "BUCK_README.md": "buck.md",
}
TITLES = {"CONTRIBUTING.md": "Contributing", "CHANGELOG.md": "Changelog", "BUCK_README.md": "Building with Buck2"}
LINK = re.compile(r"(?<=\]\()([^)\s#]+)(#[^)\s]*)?(?=\))")
ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):<code>(~?)([\w.]+)</code>")


def modules() -> Iterator[Path]:
    """Every module of the package whose name does not begin with an underscore, relative to the root."""
    for file in sorted((ROOT / PACKAGE).rglob("*.py")):
        if not file.name.startswith("_"):
            yield file.relative_to(ROOT)


def on_config(config: Any) -> Any:
    """Adds the root's pages and the reference to the navigation."""
    for name, title in TITLES.items():
        if (ROOT / name).exists():
            config.nav.append({title: ROOT_PAGES[name]})
    reference: list[Any] = []
    for module in modules():
        entries = reference
        for folder in module.parts[1:-1]:
            found = next((entry[folder] for entry in entries if folder in entry), None)
            if found is None:
                found = []
                entries.append({folder: found})
            entries = found
        entries.append({module.stem: _reference(module)})
    config.nav.append({"API reference": reference})
    return config


def on_files(files: Files, config: Any) -> Files:
    """Adds the root's pages, one page per module, and one per file to which a page links."""
    sources: list[Path] = []
    for name, uri in ROOT_PAGES.items():
        if (ROOT / name).exists():
            files.append(File.generated(config, uri, content=(ROOT / name).read_text()))
            sources.append(ROOT / name)
    sources += sorted((ROOT / "docs").glob("*.md"))
    for module in modules():
        name = ".".join(module.with_suffix("").parts)
        files.append(File.generated(config, _reference(module), content=f"# {module.stem}\n\n::: {name}\n"))
    shown = {}
    for page in sources:
        for target, _ in LINK.findall(page.read_text()):
            path = _in_repository(page, target)
            if path is not None and _place(path).startswith("source/") and not _place(path).endswith(".png"):
                shown[_place(path)] = ROOT / path
    for uri, path in sorted(shown.items()):
        files.append(File.generated(config, uri, content=_shown(path)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turns links to files of the repository into links within the site."""
    uri = page.file.src_uri
    names = {site: name for name, site in ROOT_PAGES.items()}
    file = ROOT / names[uri] if uri in names else ROOT / "docs" / uri
    if not file.exists():
        return markdown

    def link(match: re.Match[str]) -> str:
        path = _in_repository(file, match[1])
        if path is None:
            return match[0]
        return posixpath.relpath(_place(path), posixpath.dirname(uri) or ".") + (match[2] or "")

    return LINK.sub(link, markdown)


def on_page_content(html: str, **_: Any) -> str:
    """Turns the Sphinx roles of docstrings, such as ``:class:`x.Y```, into links to what they name."""

    def link(match: re.Match[str]) -> str:
        text = match[2].rpartition(".")[2] if match[1] else match[2]
        return f'<autoref optional identifier="{match[2]}"><code>{text}</code></autoref>'

    return ROLE.sub(link, html)


def _in_repository(page: Path, target: str) -> str | None:
    """The file to which a page links, relative to the root; None for other links."""
    if "://" in target or target.startswith("mailto:"):
        return None
    path = os.path.normpath(page.parent / target)
    return Path(path).relative_to(ROOT).as_posix() if Path(path).exists() else None


def _place(path: str) -> str:
    """Where the site has a file of the repository."""
    if path in ROOT_PAGES:
        return ROOT_PAGES[path]
    if path.startswith("docs/"):
        return path.removeprefix("docs/")
    if Path(path) in set(modules()):
        return _reference(Path(path))
    return f"source/{path.replace('/.', '/dot-').removeprefix('.')}.md"


def _reference(module: Path) -> str:
    return f"reference/{module.with_suffix('.md').as_posix()}"


def _shown(path: Path) -> str:
    """A page that shows a file, or the files of a folder."""
    title = f"# {path.relative_to(ROOT)}\n"
    files = sorted(file for file in path.iterdir() if file.is_file()) if path.is_dir() else [path]
    for file in files:
        text = file.read_text(errors="replace")
        if path.is_dir():
            title += f"\n## {file.name}\n"
        if len(text) > 20_000:
            title += f"\n{len(text):,} characters, not shown here.\n"
            continue
        language = {".py": "python", ".json": "json", ".cpp": "cpp", ".yaml": "yaml"}.get(file.suffix, "")
        title += f"\n`````{language}\n{text}\n`````\n"
    return title
