"""What names a model on Hugging Face."""

from pathlib import Path

import pytest

from moejax.hub.names import hub_model
from tests.messages import refuses


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("org/name", ("org/name", None)),
        ("mistralai/Mixtral-8x7B-v0.1", ("mistralai/Mixtral-8x7B-v0.1", None)),
        ("hf://org/name", ("org/name", None)),
        ("hf://org/name/", ("org/name", None)),
        ("hf://org/name@v1.0", ("org/name", "v1.0")),
        ("hf://org/name@refs/pr/3", ("org/name", "refs/pr/3")),
        ("https://huggingface.co/org/name", ("org/name", None)),
        ("https://huggingface.co/org/name/?library=x#files", ("org/name", None)),
        ("https://huggingface.co/org/name/tree/main", ("org/name", "main")),
        ("https://hf.co/org/name/tree/refs%2Fpr%2F3", ("org/name", "refs/pr/3")),
    ],
)
def test_a_model_is_named_in_each_of_these_ways(source: str, expected: tuple[str, str | None]) -> None:
    found = hub_model(source)
    assert found is not None
    assert (found.repo, found.revision) == expected
    assert hub_model(str(found)) == found


@pytest.mark.parametrize(
    "source",
    [
        *("name", "demo", "", "/org/name", "./org/name", "~/name", "../name", "org/name/", "a/b/c", "org/", "/name"),
        *("random:a/b", "a b/c d", "x/$(date)", "org/na--me", "org/..", "org/name.", f"org/{'n' * 93}"),
    ],
)
def test_these_name_no_model(source: str) -> None:
    assert hub_model(source) is None


def test_a_folder_of_that_name_comes_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org" / "name").mkdir(parents=True)
    assert hub_model("org/name") is None
    assert hub_model("hf://org/name") is not None
    assert hub_model(Path("org/other")) is None
    with refuses(ValueError, "revision=v1", "org/name", "hf://org/name"):
        hub_model("org/name", "v1")


@pytest.mark.parametrize(
    "source",
    [
        *("hf://name", "hf://org/name@", "hf://org/name/tree/main", "hf://a b/c", "https://example.com/org/name"),
        *("https://huggingface.co/org", "https://huggingface.co/datasets/org/name", "https://huggingface.co/docs/hub"),
        *("https://huggingface.co/org/name/blob/main/config.json", "https://huggingface.co/org/name/tree"),
    ],
)
def test_an_address_that_is_no_models_is_refused(source: str) -> None:
    with refuses(ValueError, source, "ORG/NAME"):
        hub_model(source)


@pytest.mark.parametrize("source", ["https://127.0.0.1:4443/org/name/tree/v1", "https://127.0.0.1:4443/org/name"])
def test_the_address_of_another_hub_is_taken_where_it_is_set(source: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "https://127.0.0.1:4443")
    found = hub_model(source, "v1")
    assert found is not None and (found.repo, found.revision) == ("org/name", "v1")


def test_revisions_are_checked() -> None:
    with refuses(ValueError, "v1", "v2"):
        hub_model("hf://org/name@v1", "v2")
    for revision in ("", "../x", "a b", "-x", "v1\n"):
        with refuses(ValueError, "revision", "tag"):
            hub_model("org/name", revision)
    with refuses(ValueError, "revision=v1", "demo"):
        hub_model("demo", "v1")
