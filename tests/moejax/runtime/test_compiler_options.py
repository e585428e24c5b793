"""What XLA is asked for beyond its defaults."""

from types import SimpleNamespace

import pytest

from moejax.runtime.compiler_options import compiler_options


def devices(platform: str, count: int) -> list[SimpleNamespace]:
    return [SimpleNamespace(platform=platform) for _ in range(count)]


@pytest.mark.parametrize(("platform", "count"), [("cpu", 8), ("tpu", 4), ("gpu", 1)])
def test_nothing_where_no_gpus_exchange_anything(platform: str, count: int) -> None:
    assert compiler_options(devices(platform, count)) == {}


def test_gpus_get_xla_s_own_all_reduce_and_keep_those_of_micro_batches_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XLA_FLAGS", raising=False)
    one_shot, combining = options = compiler_options(devices("gpu", 2))
    assert "all_reduce_one_shot" in one_shot and "all_reduce_combine" in combining and options[combining] == "0"
    monkeypatch.setenv("XLA_FLAGS", f"--{one_shot}=false")
    assert compiler_options(devices("gpu", 2)) == {combining: "0"}
