"""The whole model: what its compiled programs do, the full sizes without memory, and random weights."""

import json
import re
from collections.abc import Callable, Hashable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import Array

import moejax
from moejax.decoding import steps
from moejax.decoding.state import DecodeState, Features, empty_state
from moejax.families.table import named_config, named_configs, parameters_of
from moejax.model.structure import make_structure
from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.ops.table import BACKENDS, ExpertBackend
from moejax.ops.xla.blocked import blocked
from moejax.reading import random_params
from moejax.runtime.programs import Programs
from moejax.weights import random
from moejax.weights.layouts import Separate
from moejax.weights.params import declared_values
from tests.messages import refuses
from tests.moejax.compiled import PASS_ON, host_operations, instructions, weight_copies
from tests.moejax.feeding import GREEDY, feed_whole_batch
from tests.moejax.meshes import on_mesh
from tests.moejax.moe.oracle import plain

# Only F has the factor 7, so an array whose size is a multiple of F * D holds expert weights.
RAW = {
    "model_type": "mixtral",
    "vocab_size": 96,
    "hidden_size": 128,
    "intermediate_size": 896,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 16,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 256,
}
LAYERS, EXPERTS = 2, 4
WEIGHT_SIZE = 896 * 128
WEIGHT_BYTES = 2 * WEIGHT_SIZE  # bfloat16


@pytest.fixture(scope="module")
def config_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(RAW))
    return path


# --- the programs that decoding compiles and runs ---


@dataclass(frozen=True, kw_only=True)
class RecordedCall:
    """One call of a compiled program by the engine.

    before, after: addresses of the arrays of the decode state's cache, where the call takes and gives a state.
    """

    kind: str
    program: jax.stages.Compiled
    cache_bytes: int
    before: list[int]
    after: list[int]

    @property
    def text(self) -> str:
        text = self.program.as_text()
        assert text is not None
        return text

    @property
    def memory(self) -> Any:
        return self.program.memory_analysis()


def recorded_decode(model: moejax.Model, prompts: list[list[int]], max_tokens: int) -> list[RecordedCall]:
    """Decodes `prompts` and returns every program that the engine called, in order."""
    calls = []

    class Recorder(Programs):
        def call(self, key: Hashable, function: Callable[..., Any], *args: Any, donate: tuple[int, ...] = ()) -> Any:
            given = [array for arg in args if isinstance(arg, DecodeState) for array in jax.tree.leaves(arg.cache)]
            cache_bytes, before = sum(array.nbytes for array in given), [a.unsafe_buffer_pointer() for a in given]
            result = super().call(key, function, *args, donate=donate)
            states = [one for one in result if isinstance(one, DecodeState)] if isinstance(result, tuple) else []
            after = [array.unsafe_buffer_pointer() for one in states for array in jax.tree.leaves(one.cache)]
            assert isinstance(key, tuple)
            program: Any = self._programs[key]
            calls.append(
                RecordedCall(kind=key[0], program=program, cache_bytes=cache_bytes, before=before, after=after)
            )
            return result

    moejax.decode(replace(model, programs=Recorder(model.parallel.sharding())), prompts, max_tokens=max_tokens)
    return calls


def of_kind(calls: list[RecordedCall], kind: str) -> RecordedCall:
    return next(call for call in calls if call.kind == kind)


@pytest.fixture(scope="module", params=[1, 3], ids=["one sequence", "three sequences"])
def calls(request: pytest.FixtureRequest, config_file: Path) -> list[RecordedCall]:
    model = moejax.load(f"random:{config_file}", dtype="bfloat16", expert_backend="blocked")
    return recorded_decode(model, [[1, 2, 3]] * request.param, max_tokens=40)


@pytest.mark.parametrize("kind", ["generate", "extend"])
def test_no_expert_weight_is_copied(calls: list[RecordedCall], kind: str) -> None:
    """Nothing makes an array as large as an expert's matrix: no copy, conversion, transposition or slice of one."""
    program = of_kind(calls, kind).text
    weights = [
        array
        for one in instructions(program)
        if one.opcode == "parameter"
        for array in one.results
        if array.size == WEIGHT_SIZE
    ]
    assert len(weights) >= LAYERS * EXPERTS * 3, "the program does not take the weights that this test looks for"
    assert {array.dtype for array in weights} == {"bf16"}
    assert weight_copies(program, WEIGHT_SIZE) == []


def test_a_decode_step_has_no_room_for_a_copy(calls: list[RecordedCall]) -> None:
    assert 0 < of_kind(calls, "generate").memory.temp_size_in_bytes < WEIGHT_BYTES


@pytest.mark.parametrize("kind", ["generate", "extend"])
def test_each_expert_is_read_inside_a_loop_of_its_own(calls: list[RecordedCall], kind: str) -> None:
    """Its three matrices are operands in the body of one loop, whose trip count is not known before it runs."""
    program = instructions(of_kind(calls, kind).text)
    by_name = {(one.computation, one.name): one for one in program}
    read: dict[str, set[str]] = {}
    for one in program:
        if one.opcode not in PASS_ON:
            for operand in one.operands:
                source = by_name.get((one.computation, operand))
                if source is not None and any(array.size == WEIGHT_SIZE for array in source.results):
                    read.setdefault(one.computation, set()).add(operand)
    loops = {match[1]: one.text for one in program if (match := re.search(r"body=%([\w.-]+)", one.text))}
    assert len(read) == LAYERS * EXPERTS
    assert all(len(operands) == 3 for operands in read.values())
    assert all("known_trip_count" not in loops[body] for body in read)


def test_stacked_weights_would_be_copied(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests above see it: the same loops over slices of one [E, ...] array, which XLA:CPU copies first."""

    def sliced(experts: Expert, x: Array, routing: Routing) -> Array:
        sliced = (tuple(plain(value.array[e : e + 1]) for e in range(EXPERTS)) for value in experts)
        return blocked(Expert(*(Separate(parts=parts) for parts in sliced)), x, routing)

    monkeypatch.setitem(BACKENDS, "ragged", ExpertBackend(layout="stacked", apply=sliced))
    model = moejax.load(f"random:{config_file}", dtype="bfloat16", expert_backend="ragged")
    generate = of_kind(recorded_decode(model, [[1, 2, 3]], max_tokens=2), "generate")
    assert len(weight_copies(generate.text, WEIGHT_SIZE)) >= 3
    assert generate.memory.temp_size_in_bytes > WEIGHT_BYTES


@pytest.mark.parametrize("kind", ["extend", "generate"])
def test_programs_do_not_talk_to_the_host(calls: list[RecordedCall], kind: str) -> None:
    assert host_operations(of_kind(calls, kind).text) == []


def test_a_callback_would_be_found() -> None:
    def one_round(i: Array, x: Array) -> Array:
        jax.debug.callback(lambda value: None, x)
        return x + 1.0

    program = jax.jit(lambda x: jax.lax.fori_loop(0, 3, one_round, x)).lower(jnp.zeros(3)).compile().as_text()
    assert program is not None and host_operations(program)


def test_one_call_generates_all_tokens(calls: list[RecordedCall]) -> None:
    """40 tokens: the prompt and the first token in one call, the 39 others in one."""
    kinds = [call.kind for call in calls]
    assert [kinds.count(kind) for kind in ("extend", "generate")] == [1, 1]


@pytest.mark.parametrize("kind", ["extend", "generate"])
def test_the_donated_cache_is_written_in_place(calls: list[RecordedCall], kind: str) -> None:
    call = of_kind(calls, kind)
    assert len(call.before) == 2 * LAYERS
    assert call.after == call.before
    assert "input_output_alias" in call.text
    assert call.memory.alias_size_in_bytes >= call.cache_bytes > 0


# --- the published sizes, without memory ---

FULL_SIZES = {"mixtral-8x7b": 46_702_792_704, "mixtral-8x22b": 140_620_634_112}


@pytest.mark.parametrize("backend", ["blocked", "dense"])
@pytest.mark.parametrize("name", FULL_SIZES)
def test_full_size_declares_every_parameter(name: str, backend: str) -> None:
    """The sum over all arrays equals the formula written out, the config's count and the published number."""
    c = named_configs()[name]
    attention = 2 * c.embed_dim * c.num_heads * c.head_dim + 2 * c.embed_dim * c.num_kv_heads * c.head_dim
    experts = c.num_experts * 3 * c.embed_dim * c.expert_dim
    layer = attention + experts + c.num_experts * c.embed_dim + 2 * c.embed_dim
    total = 2 * c.vocab_size * c.embed_dim + c.num_layers * layer + c.embed_dim
    structure = make_structure(c, backend, "bfloat16", on_mesh(c))
    leaves = jax.tree.leaves(declared_values(structure.abstract))
    assert sum(leaf.size for leaf in leaves) == total == parameters_of(c).total == FULL_SIZES[name]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16"), jnp.dtype("uint16")}  # bits of the embedding
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


@pytest.mark.parametrize(("name", "backend"), [("mixtral-8x7b", "blocked"), ("mixtral-8x22b", "dense")])
def test_full_size_lowers(name: str, backend: str) -> None:
    """A decode step of 2 sequences x 4,096 positions, and a prefill of 2,048 tokens, from shapes alone."""
    config, shape = named_configs()[name], jax.ShapeDtypeStruct
    parallel = on_mesh(config)
    structure = make_structure(config, backend, "bfloat16", parallel)
    params = structure.shapes()
    features = Features(sample=True, filter=True)
    state = jax.eval_shape(lambda: empty_state(config, features, 2, 4096, "bfloat16", parallel))
    decode = jax.jit(lambda params, *args: steps.generate(structure.merged(params), features, *args))
    lowered = decode.lower(params, state, shape((2,), bool), shape((), jnp.int32), shape((), jnp.int32))
    new_state, generated = lowered.out_info
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new_state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert generated.outputs.token.shape == (steps.STEPS_PER_CALL, 2) and generated.taken.shape == ()
    assert generated.rows.shape == (1, config.num_layers, config.num_experts)

    fed, state, feed = feed_whole_batch(config, parallel, prompts=1, width=2048, length=2048)
    prefill = jax.jit(lambda params, *args: steps.extend(structure.merged(params), GREEDY, fed, *args))
    new_state, first, _, _ = prefill.lower(params, state, feed).out_info
    assert [layer.k.shape for layer in new_state.cache] == [(1, 8, 2048, 128)] * config.num_layers
    assert first.token.shape == (1,) and first.token.dtype == jnp.int32


# --- random weights ---


def random_model(config_file: Path, **options: Any) -> moejax.Model:
    return moejax.load(f"random:{config_file}", **options)


def logical(model: moejax.Model) -> dict[str, Array]:
    return model.structure.unpack(model.params)


def as_bits(array: Array) -> np.ndarray:
    return np.asarray(array).view(f"u{array.dtype.itemsize}")


def test_random_weights_are_those_of_their_seed(config_file: Path) -> None:
    first, again, other = (logical(random_model(config_file, seed=seed)) for seed in (5, 5, 6))
    assert first.keys() == again.keys() == other.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(as_bits(array), as_bits(again[path]))
        if not path.endswith("norm.scale"):
            assert (as_bits(array) != as_bits(other[path])).mean() > 0.9, path


def test_every_random_array_is_another_one(config_file: Path) -> None:
    params = logical(random_model(config_file))
    first = {path: as_bits(array).ravel()[:16].tobytes() for path, array in params.items() if "norm" not in path}
    assert len(set(first.values())) == len(first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_random_weights_have_the_dtype_and_keep_the_scale(config_file: Path, dtype: str) -> None:
    """Deviation 1 / sqrt(inputs), so activations neither vanish nor grow; norms are 1."""
    params = logical(random_model(config_file, dtype=dtype))
    for path, array in params.items():
        assert array.dtype == jnp.dtype(dtype)
        values = np.asarray(array).astype(np.float64)
        if path.endswith("norm.scale"):
            np.testing.assert_array_equal(values, 1)
        else:
            # The smallest array has 512 numbers: their deviation is off by 3%, five such are 16%.
            assert values.std() * array.shape[-1] ** 0.5 == pytest.approx(1, rel=0.16), path
            assert abs(values.mean()) < 0.25 * values.std(), path


def test_random_weights_of_a_named_config_have_no_tokenizer_or_eos(config_file: Path) -> None:
    model = random_model(config_file)
    assert model.config == named_config(str(config_file))
    assert model.tokenizer is None and model.eos_token_ids == ()
    with refuses(ValueError, "no tokenizer", "token ids"):
        moejax.decode(model, "text")


def largest_from_host(function: Callable[..., Any], *args: Any) -> int:
    """Elements of the largest array that `function(*args)` brings from the host. One that it takes back is an error."""
    traced = jax.make_jaxpr(function)(*args)
    return max((np.size(one) for one in (*args, *traced.consts)), default=0)


def test_random_weights_are_made_on_the_device(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the result of a compiled function that is given a key, and a hash and a flag per expert."""
    config = named_config(str(config_file))
    jit, made = jax.jit, []

    def recording_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            assert largest_from_host(function, *args) <= max(2, EXPERTS)
            made.append(jit(function, **options)(*args))
            return made[-1]

        return call

    monkeypatch.setattr(jax, "jit", recording_jit)
    random._maker.cache_clear()
    params = random_params(make_structure(config, "blocked", "bfloat16", on_mesh(config)), 0)
    del params["placement"]
    arrays = [array for value in params.values() for array in jax.tree.leaves(value)]
    assert sorted(map(id, arrays)) == sorted(map(id, made))
    random._maker.cache_clear()


def test_a_copy_from_or_to_the_host_would_be_found() -> None:
    assert largest_from_host(lambda: jax.device_put(np.ones((30, 4), np.float32))) == 120
    with pytest.raises(jax.errors.TracerArrayConversionError):
        largest_from_host(lambda: np.asarray(jax.random.normal(jax.random.key(0), (3,))))
