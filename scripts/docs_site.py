"""Builds the site of docs/ with Sphinx, strictly: a link or an anchor that leads nowhere is an error. No network.

    python -m scripts.docs_site build/site
    python -m scripts.docs_site --check

Pages are those that GitHub shows. README.md is the site's first one, CONTRIBUTING.md and CHANGELOG.md are beside the
pages of docs/, and files outside of docs/ that some page links to come along under source/. So every link between
files of the repository stays a link inside the site, and none needs an address of the repository. --check stages the
pages and follows their links to files, without Sphinx.
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).resolve().parents[1]
FIRST = "index.md"
RENAMED = {"README.md": FIRST, "CONTRIBUTING.md": "contributing.md", "CHANGELOG.md": "changelog.md"}
# The menu, in order; a page that is not here is an error.
MENU = {
    "Use": ("install", "decoding", "jax", "parallelism", "processes", "conversion", "serving"),
    "Plan": ("targets", "performance-model", "expert-load", "mesh-checks", "json", "predictions", "intra_vs_inter"),
    "Speed": ("benchmarks", "performance", "native", "kernels", "accelerators"),
    "Project": ("contributing", "decisions", "changelog"),
}
PARTS = ("benchmarks_intro.md", "benchmarks_published.md")  # of docs/benchmarks.md, no pages of their own
CONFIG = """
project = "moejax"
extensions = ["myst_parser"]
html_theme = "furo"
html_title = "moejax"
html_show_copyright = False
highlight_language = "none"
myst_heading_anchors = 4
suppress_warnings = ["misc.highlighting_failure", "myst.header"]
"""
_LINK = re.compile(r"(\]\()([^)\s]+)(\))|(\b(?:src|srcset)=\")([^\"]+)(\")")
_FENCE = re.compile(r"^( *)```.*?^\1```$|`[^`\n]+`", re.MULTILINE | re.DOTALL)
_PICTURE = re.compile(r"<picture>.*?<img src=\"([^\"]+)\" alt=\"([^\"]*)\" */>\s*</picture>", re.DOTALL)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build" / "site", help="where the site goes")
    parser.add_argument("--check", action="store_true", help="follow the links alone")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        stage(ROOT, Path(scratch))
        if args.check:
            print(f"{len(list(Path(scratch).rglob('*.md')))} pages, every link leads to a file")
            return
        command = [sys.executable, "-m", "sphinx", "-W", "--keep-going", "-q", "-b", "html", scratch, args.folder]
        status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(f"the site was not built without warnings (exit code {status}); they are above")
    print(f"built {args.folder / 'index.html'}")


def stage(root: Path, folder: Path) -> None:
    """Writes what Sphinx reads: pages with links rewritten, what they link to, configuration and menu.

    Raises:
        ValueError: for a link to a file that does not exist, and for a page without a place in the menu.
    """
    pages = [root / name for name in RENAMED]
    pages += [page for page in sorted((root / "docs").glob("*.md")) if page.name not in PARTS]
    listed = {f"{name}.md" for names in MENU.values() for name in names} | {FIRST}
    staged = {str(site_path(page.relative_to(root))) for page in pages}
    if lost := sorted(staged ^ listed):
        raise ValueError(f"{', '.join(lost)}: pages and the menu of scripts/docs_site.py differ; add or remove them")
    missing: list[str] = []
    menu = set(pages)
    for page in pages:  # grows by pages outside of docs/ that others link to
        text = _PICTURE.sub(r"![\2](\1)", page.read_text(encoding="utf-8"))
        out = folder / site_path(page.relative_to(root))
        for target in linked_files(page, text, root):
            if not target.is_file():
                missing.append(f"{page.relative_to(root)} links to {target.relative_to(root)}, which is no file")
            elif target.suffix == ".md":
                pages += [target] if target not in pages else []
            else:
                copy = folder / site_path(target.relative_to(root))
                copy.parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(target, copy)
        out.parent.mkdir(parents=True, exist_ok=True)
        head = "" if page in menu else "---\norphan: true\n---\n\n"
        out.write_text(head + rewritten(page.relative_to(root), text), encoding="utf-8")
    if missing:
        raise ValueError("; ".join(missing))
    with (folder / FIRST).open("a", encoding="utf-8") as index:
        index.write("".join(_menus()))
    (folder / "conf.py").write_text(CONFIG, encoding="utf-8")


def site_path(path: Path) -> PurePosixPath:
    """Where a file of the repository lies in the site: docs/a.md at a.md, moejax/b.py at source/moejax/b.py."""
    posix = PurePosixPath(path.as_posix())
    if str(posix) in RENAMED:
        return PurePosixPath(RENAMED[str(posix)])
    return posix.relative_to("docs") if posix.parts[0] == "docs" else PurePosixPath("source") / posix


def linked_files(page: Path, text: str, root: Path) -> Iterator[Path]:
    """The files of the repository that a page links to.

    Raises:
        ValueError: for a link that leads out of the repository.
    """
    for path, _ in _targets(text):
        found = Path(os.path.normpath(page.parent / path))
        if not found.is_relative_to(root):
            raise ValueError(f"{page.relative_to(root)} links to {path}, which is outside of the repository")
        yield found


def rewritten(page: Path, text: str) -> str:
    """A page's text with every link to a file as it is in the site."""
    here = site_path(page).parent

    def moved(found: re.Match[str]) -> str:
        opening, link, closing = found.groups()[:3] if found[1] else found.groups()[3:]
        if _is_elsewhere(link):
            return found[0]
        path, mark, anchor = link.partition("#")
        target = site_path(Path(os.path.normpath(page.parent / path)))
        return f"{opening}{os.path.relpath(target, here)}{mark}{anchor}{closing}"

    ends, parts = 0, []
    for code in _FENCE.finditer(text):
        parts += [_LINK.sub(moved, text[ends : code.start()]), code[0]]
        ends = code.end()
    return "".join([*parts, _LINK.sub(moved, text[ends:])])


def _targets(text: str) -> Iterator[tuple[str, str]]:
    """Path and anchor of each link to a file; code is no link."""
    for found in _LINK.finditer(_FENCE.sub("", text)):
        link = found[2] or found[5]
        if not _is_elsewhere(link):
            path, _, anchor = link.partition("#")
            yield path, anchor


def _is_elsewhere(link: str) -> bool:
    """Whether a link leads to another server, or stays on its page."""
    return link.startswith("#") or re.match(r"[a-z][a-z0-9+.-]*:", link) is not None


def _menus() -> Iterator[str]:
    for title, names in MENU.items():
        listed = "\n".join(names)
        yield f"\n```{{toctree}}\n:hidden:\n:caption: {title}\n\n{listed}\n```\n"


if __name__ == "__main__":
    main()
