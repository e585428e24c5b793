"""What users give as a path."""

from pathlib import Path

import pytest

from moejax.runtime.paths import user_path
from tests.messages import refuses


def test_home_is_expanded_and_nothing_has_to_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    assert user_path("~/x", "source") == tmp_path / "x"
    assert user_path(tmp_path, "source") == tmp_path
    assert user_path("/dev/null/x", "source") == Path("/dev/null/x")


@pytest.mark.parametrize(
    ("given", "facts"),
    [
        (None, ("a path", None)),
        (b"x", ("a path", b"x")),
        ("a\0b", ("null byte",)),
        ("~no-such-user/x", ("'~no-such-user/x'", "home")),
        ("n" * 300, ("too long",)),
        ("", ("empty",)),
    ],
)
def test_what_can_be_no_path_is_refused_in_one_line(given: object, facts: tuple[object, ...]) -> None:
    with refuses(ValueError, "target", *facts):
        user_path(given, "target")
