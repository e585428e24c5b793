"""What XLA compiles for a split, against the closed forms; and that 1 and 2 layers tell what a deep model has."""

import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

import jax
import pytest

from moejax._sharding.collectives import Collective
from moejax.families.config import ModelConfig
from moejax.measuring import compiled
from moejax.measuring.compile_program import compile_job
from moejax.measuring.compiled import Job, ProgramFacts, compile_splits, extrapolate
from moejax.moe.split import make_rules, resolve_split
from moejax.planning.communication import by_phase, report_collectives
from moejax.planning.compare import compare_meshes
from moejax.planning.splits import EVERY_DISPATCH
from moejax.planning.workload import Workload
from tests.messages import refuses, says

CONFIG = ModelConfig(
    vocab_size=304,
    embed_dim=64,
    num_layers=6,
    num_heads=8,
    num_kv_heads=4,
    head_dim=16,
    num_experts=8,
    experts_per_token=2,
    expert_dim=48,
    max_position_embeddings=512,
)
WORKLOAD = Workload(batch_size=3, input_len=40, context=100)  # nothing of it is a bucket's size
SPLITS = [
    resolve_split(CONFIG, mesh, dispatch)
    for mesh, dispatch in (
        ("data=2,expert=2,tensor=2", "replicated"),
        ("data=2,expert=4", "gather"),
        ("expert=4,tensor=2", "all_to_all"),
    )
]


@pytest.fixture(scope="module")
def facts() -> list[ProgramFacts]:
    """What a subprocess found of each program, in the order of the jobs."""
    jobs = [job for split in SPLITS for job in compiled._jobs(CONFIG, split, WORKLOAD, (1, 2))]
    found = dict(compiled._run(CONFIG, jobs, devices=8))
    assert sorted(found) == list(range(len(SPLITS) * 2 * 2))
    return [found[number] for number in range(len(jobs))]


@pytest.fixture
def known(facts: list[ProgramFacts], monkeypatch: pytest.MonkeyPatch) -> None:
    """`compile_splits` takes the facts from here instead of compiling again."""

    def run(config: ModelConfig, jobs: Sequence[Job], devices: int) -> Iterator[tuple[int, ProgramFacts]]:
        yield from reversed(list(enumerate(facts)))  # any order

    monkeypatch.setattr(compiled, "_run", run)


@pytest.mark.usefixtures("known")
def test_every_collective_and_byte_is_as_predicted() -> None:
    told: list[tuple[int, int]] = []
    checks = compile_splits(CONFIG, SPLITS, WORKLOAD, told=lambda done, all_: told.append((done, all_)))
    assert [check.differences for check in checks] == [()] * len(SPLITS) and all(check.equal for check in checks)
    assert told == [(done, 12) for done in range(1, 13)]
    kinds = [Counter(one.kind for one in check.decode.collectives if one.scope == "moe") for check in checks]
    assert kinds == [{"all-reduce": 6}, {"all-gather": 6, "reduce-scatter": 6}, {"all-to-all": 18, "all-reduce": 6}]


def test_the_rows_of_a_comparison_have_these_collectives() -> None:
    """All but the counters for the host, which cost no time worth predicting."""
    rows = compare_meshes(
        CONFIG, 8, "cpu", batch_size=3, input_len=40, context=100, dtype="float32", dispatch=EVERY_DISPATCH
    )
    for split in SPLITS:
        row = next(row for row in rows if (row.split.mesh, row.split.dispatch) == (split.mesh, split.dispatch))
        rules = make_rules(CONFIG, split.mesh, split.dispatch)
        jobs = {job.phase: job for job in compiled._jobs(CONFIG, split, WORKLOAD, (1,))}
        assert row.decode is not None and row.prefill is not None and row.prefill.calls == 1
        for phase, found in (("decode", row.decode), ("prefill", row.prefill)):
            expected = compiled.predicted_collectives(CONFIG, rules, jobs[phase])
            assert Counter(found.collectives) == Counter(expected) - Counter(report_collectives(CONFIG, rules))


def _one_more(*args: Any) -> list[Collective]:
    return [Collective(kind="all-reduce", axes=("expert",), elements=7, dtype="int32", in_loop=False, scope="")]


@pytest.mark.usefixtures("known")
@pytest.mark.parametrize(
    ("name", "wrong", "told"),
    [
        ("report_collectives", _one_more, ("decode", "1 x all-reduce", "expert", "7 int32", "0 compiled")),
        ("cache_bytes", lambda *args: 99, ("decode", "99 bytes", "196,608")),
    ],
)
def test_a_wrong_prediction_is_told(
    monkeypatch: pytest.MonkeyPatch, name: str, wrong: Any, told: tuple[str, ...]
) -> None:
    monkeypatch.setattr(compiled, name, wrong)
    check, *_ = compile_splits(CONFIG, SPLITS, WORKLOAD)
    assert not check.equal
    says("\n".join(check.differences), *told)


@pytest.mark.usefixtures("known")
def test_arguments_that_nobody_declared_are_told(facts: list[ProgramFacts]) -> None:
    facts = list(facts)
    original, facts[0] = facts[0], replace(facts[0], argument_bytes=facts[0].argument_bytes + 4)
    (text,) = compiled._argument_differences(compiled._jobs(CONFIG, SPLITS[0], WORKLOAD, (1, 2))[0], facts[0])
    assert text.startswith("decode, 1 layers: ") and text.endswith(f"{original.argument_bytes + 4:,} compiled")


def test_quick_programs_have_the_collectives_of_optimised_ones(facts: list[ProgramFacts]) -> None:
    job = compiled._jobs(CONFIG, SPLITS[2], WORKLOAD, (1, 2))[1]
    optimised = compile_job(CONFIG, job, quick=False)
    assert (job.phase, job.layers) == ("decode", 2)
    assert replace(optimised, temp_bytes=0) == replace(facts[9], temp_bytes=0)


@pytest.mark.slow
def test_two_depths_tell_what_the_full_depth_has(facts: list[ProgramFacts]) -> None:
    """One split of a deep and narrow model, compiled whole."""
    assert jax.device_count() == 8
    deep = replace(CONFIG, num_layers=8)
    (check,) = compile_splits(deep, SPLITS[2:], WORKLOAD)
    for job in compiled._jobs(deep, SPLITS[2], WORKLOAD, (8,)):
        whole = compile_job(deep, job)
        found = (check.decode if job.phase == "decode" else check.prefill).collectives
        assert Counter(by_phase(whole.collectives)) == Counter(found)
        assert whole.weight_bytes == check.weight_bytes
        assert whole.argument_bytes == whole.weight_bytes + whole.kv_bytes + whole.other_bytes
        assert job.phase == "prefill" or whole.kv_bytes == check.kv_bytes


def _sized(*sizes: int, kind: Any = "all-gather") -> list[Collective]:
    return [
        Collective(kind=kind, axes=("data",), elements=size, dtype="int32", in_loop=False, scope="") for size in sizes
    ]


def test_layers_add_collectives_or_make_them_larger() -> None:
    assert extrapolate(_sized(3, 5), _sized(3, 5, 5), 2) == Counter(_sized(3, 5, 5, 5, 5))
    assert extrapolate(_sized(8), _sized(16), 30) == Counter(_sized(256))
    mixed = extrapolate(_sized(8) + _sized(4, kind="all-reduce"), _sized(8) + _sized(4, 4, kind="all-reduce"), 1)
    assert mixed == Counter(_sized(8) + _sized(4, 4, 4, kind="all-reduce"))
    with refuses(RuntimeError, "all-gather", "('data',)", "[3]"):
        extrapolate(_sized(3), _sized(4, 4), 1)


def test_what_cannot_be_compiled() -> None:
    with refuses(ValueError, "context=0"):
        compile_splits(CONFIG, SPLITS, Workload(batch_size=1, input_len=1, context=0))
    jobs = compiled._jobs(CONFIG, SPLITS[0], WORKLOAD, (1,))
    with refuses(RuntimeError, "2 simulated devices", "ValueError", "needs 8"):
        list(compiled._run(CONFIG, jobs, devices=2))


def test_the_environment_of_the_subprocess(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever devices this process was told to take, there it is simulated ones."""
    monkeypatch.setenv("XLA_FLAGS", "--xla_force_host_platform_device_count=3 --xla_cpu_use_fusion_emitters=true")
    monkeypatch.setenv("JAX_PLATFORMS", "cuda")
    found = compiled._environment(8)
    assert (found["JAX_PLATFORMS"], found["JAX_NUM_CPU_DEVICES"]) == ("cpu", "8")
    assert found["XLA_FLAGS"].strip() == "--xla_cpu_use_fusion_emitters=true"
    assert set(filter(None, sys.path)) <= set(found["PYTHONPATH"].split(":"))
