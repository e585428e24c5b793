"""The site of docs/: every page in the menu, every link to a file that is there. Anchors are Sphinx's: make docs."""

from pathlib import Path

import pytest

from scripts.docs_site import FIRST, MENU, ROOT, rewritten, site_path, stage
from tests.messages import refuses


def test_every_page_of_the_repository_is_staged_and_its_links_lead_to_files(tmp_path: Path) -> None:
    stage(ROOT, tmp_path)
    pages = {path.stem for path in tmp_path.glob("*.md")}
    assert pages == {name for names in MENU.values() for name in names} | {Path(FIRST).stem}
    assert (tmp_path / "source/moejax/families/mixtral.py").is_file()
    assert "orphan" in (tmp_path / "source/moejax/checkpoints/demo/README.md").read_text(encoding="utf-8")[:20]
    index = (tmp_path / FIRST).read_text(encoding="utf-8")
    assert "![The page after a race](pictures/page.png)" in index and "toctree" in index


@pytest.mark.parametrize(
    ("page", "text", "wanted"),
    [
        ("README.md", "[a](docs/x.md#y) [b](#here) [c](CHANGELOG.md)", "[a](x.md#y) [b](#here) [c](changelog.md)"),
        ("docs/x.md", "[a](../README.md) [b](y.md)", "[a](index.md) [b](y.md)"),
        ("docs/x.md", "[a](../moejax/a.py)", "[a](source/moejax/a.py)"),
        ("moejax/README.md", "[a](../docs/x.md)", "[a](../../x.md)"),
        ("docs/x.md", "[a](https://b.c/d.md) [e](mailto:f)", "[a](https://b.c/d.md) [e](mailto:f)"),
        ("README.md", "`[a](docs/x.md)`\n```\n[b](docs/x.md)\n```\n", "`[a](docs/x.md)`\n```\n[b](docs/x.md)\n```\n"),
        ("README.md", '<img src="docs/a.png" />', '<img src="a.png" />'),
    ],
)
def test_links_become_those_of_the_site(page: str, text: str, wanted: str) -> None:
    assert rewritten(Path(page), text) == wanted


def test_files_keep_one_place() -> None:
    assert str(site_path(Path("docs/pictures/a.svg"))) == "pictures/a.svg"
    assert str(site_path(Path("LICENSE"))) == "source/LICENSE"


def copy_of_pages(folder: Path) -> Path:
    (folder / "docs").mkdir(parents=True)
    for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md"):
        (folder / name).write_text("# Title\n")
    for name in {name for names in MENU.values() for name in names} - {"contributing", "changelog"}:
        (folder / "docs" / f"{name}.md").write_text("# Title\n")
    return folder


def test_what_leads_nowhere_is_named(tmp_path: Path) -> None:
    root = copy_of_pages(tmp_path / "root")
    stage(root, tmp_path / "good")
    (root / "docs/serving.md").write_text("[a](no.md) [b](../../x)\n")
    with refuses(ValueError, "docs/serving.md", "../../x", "outside"):
        stage(root, tmp_path / "outside")
    (root / "docs/serving.md").write_text("[a](no.md)\n")
    with refuses(ValueError, "docs/serving.md", "docs/no.md"):
        stage(root, tmp_path / "missing")
    (root / "docs/serving.md").write_text("# Title\n")
    (root / "docs/new.md").write_text("# Title\n")
    with refuses(ValueError, "new.md", "menu"):
        stage(root, tmp_path / "new")
