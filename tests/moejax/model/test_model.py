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
from moejax.families.config import NAMED_CONFIGS, named_config
from moejax.loading import abstract_model
from moejax.model.cache import empty_cache
from moejax.model.params import merge
from moejax.moe.experts import BACKENDS, ExpertBackend
from moejax.ops.expert import Expert
from moejax.ops.routing import Routing
from moejax.ops.xla.blocked import blocked
from moejax.runtime.programs import Programs
from tests.moejax.compiled import PASS_ON, host_operations, instructions, weight_copies
from tests.moejax.meshes import made_params, on_mesh

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
class Call:
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


def recorded_decode(model: moejax.Model, prompts: list[list[int]], max_tokens: int) -> list[Call]:
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
            calls.append(Call(kind=key[0], program=program, cache_bytes=cache_bytes, before=before, after=after))
            return result

    moejax.decode(replace(model, programs=Recorder(model.parallel.sharding())), prompts, max_tokens=max_tokens)
    return calls


def of_kind(calls: list[Call], kind: str) -> Call:
    return next(call for call in calls if call.kind == kind)


@pytest.fixture(scope="module", params=[1, 3], ids=["one row", "three rows"])
def calls(request: pytest.FixtureRequest, config_file: Path) -> list[Call]:
    model = moejax.load(f"random:{config_file}", dtype="bfloat16", expert_backend="blocked")
    return recorded_decode(model, [[1, 2, 3]] * request.param, max_tokens=40)


@pytest.mark.parametrize("kind", ["generate", "prefill"])
def test_no_expert_weight_is_copied(calls: list[Call], kind: str) -> None:
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


def test_a_decode_step_has_no_room_for_a_copy(calls: list[Call]) -> None:
    assert 0 < of_kind(calls, "generate").memory.temp_size_in_bytes < WEIGHT_BYTES


@pytest.mark.parametrize("kind", ["generate", "prefill"])
def test_each_expert_is_read_inside_a_loop_of_its_own(calls: list[Call], kind: str) -> None:
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
        return blocked([Expert(*(matrix[e] for matrix in experts)) for e in range(EXPERTS)], x, routing)

    monkeypatch.setitem(BACKENDS, "ragged", ExpertBackend(layout="stacked", apply=sliced))
    model = moejax.load(f"random:{config_file}", dtype="bfloat16", expert_backend="ragged")
    generate = of_kind(recorded_decode(model, [[1, 2, 3]], max_tokens=2), "generate")
    assert len(weight_copies(generate.text, WEIGHT_SIZE)) >= 3
    assert generate.memory.temp_size_in_bytes > WEIGHT_BYTES


@pytest.mark.parametrize("kind", ["prefill", "admit", "generate"])
def test_programs_do_not_talk_to_the_host(calls: list[Call], kind: str) -> None:
    assert host_operations(of_kind(calls, kind).text) == []


def test_a_callback_would_be_found() -> None:
    def one_round(i: Array, x: Array) -> Array:
        jax.debug.callback(lambda value: None, x)
        return x + 1.0

    program = jax.jit(lambda x: jax.lax.fori_loop(0, 3, one_round, x)).lower(jnp.zeros(3)).compile().as_text()
    assert program is not None and host_operations(program)


def test_one_call_generates_all_tokens(calls: list[Call]) -> None:
    """40 tokens: the prompt in one call, the first token in one, the 39 others in one."""
    kinds = [call.kind for call in calls]
    assert [kinds.count(kind) for kind in ("prefill", "admit", "generate")] == [1, 1, 1]


@pytest.mark.parametrize("kind", ["admit", "generate"])
def test_the_donated_cache_is_written_in_place(calls: list[Call], kind: str) -> None:
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
    c = NAMED_CONFIGS[name]
    attention = 2 * c.embed_dim * c.num_heads * c.head_dim + 2 * c.embed_dim * c.num_kv_heads * c.head_dim
    experts = c.num_experts * 3 * c.embed_dim * c.expert_dim
    layer = attention + experts + c.num_experts * c.embed_dim + 2 * c.embed_dim
    total = 2 * c.vocab_size * c.embed_dim + c.num_layers * layer + c.embed_dim
    _, abstract = abstract_model(c, backend, "bfloat16", on_mesh(c))
    leaves = [variable.get_value() for variable in abstract.values()]
    assert sum(leaf.size for leaf in leaves) == total == c.num_parameters == FULL_SIZES[name]
    assert {leaf.dtype for leaf in leaves} == {jnp.dtype("bfloat16")}
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in leaves)


@pytest.mark.parametrize(("name", "backend"), [("mixtral-8x7b", "blocked"), ("mixtral-8x22b", "dense")])
def test_full_size_lowers(name: str, backend: str) -> None:
    """A decode step of 2 rows x 4,096 slots, and a prefill of 2,048 tokens, from shapes alone."""
    config, shape = NAMED_CONFIGS[name], jax.ShapeDtypeStruct
    parallel = on_mesh(config)
    graphdef, abstract = abstract_model(config, backend, "bfloat16", parallel)
    params = {path: variable.get_value() for path, variable in abstract.items()}
    features = Features(sample=True, filter=True)
    state = jax.eval_shape(lambda: empty_state(config, features, 2, 4096, "bfloat16", parallel))
    decode = jax.jit(lambda params, *args: steps.generate(merge(graphdef, abstract, params), features, *args))
    lowered = decode.lower(params, state, shape((2,), bool), shape((), jnp.int32))
    new_state, generated = lowered.out_info
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), new_state) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), state
    )
    assert generated.outputs.token.shape == (steps.STEPS_PER_CALL, 2) and generated.taken.shape == ()
    assert generated.rows.shape == (1, config.num_layers, config.num_experts)

    cache = jax.eval_shape(lambda: empty_cache(config, 1, 2048, "bfloat16", parallel))
    prefill = jax.jit(lambda params, *args: steps.prefill(merge(graphdef, abstract, params), False, None, *args))
    tokens, logits = shape((1, 2048), jnp.int32), shape((1, config.vocab_size), jnp.float32)
    lowered = prefill.lower(params, cache, logits, tokens, tokens, shape((), jnp.int32), shape((1,), jnp.int32))
    new_cache, new_logits, _, _ = lowered.out_info
    assert [layer.k.shape for layer in new_cache] == [(1, 8, 2048, 128)] * config.num_layers
    assert new_logits.shape == (1, config.vocab_size) and new_logits.dtype == jnp.float32


# --- random weights ---


def random_model(config_file: Path, **options: Any) -> moejax.Model:
    return moejax.load(f"random:{config_file}", **options)


def as_bits(array: Array) -> np.ndarray:
    return np.asarray(array).view(f"u{array.dtype.itemsize}")


def test_random_weights_are_those_of_their_seed(config_file: Path) -> None:
    first, again, other = (random_model(config_file, seed=seed).params for seed in (5, 5, 6))
    assert first.keys() == again.keys() == other.keys()
    for path, array in first.items():
        np.testing.assert_array_equal(as_bits(array), as_bits(again[path]))
        if not path.endswith("norm.scale"):
            assert (as_bits(array) != as_bits(other[path])).mean() > 0.9, path


def test_every_random_array_is_another_one(config_file: Path) -> None:
    params = random_model(config_file).params
    first = {path: as_bits(array).ravel()[:16].tobytes() for path, array in params.items() if "norm" not in path}
    assert len(set(first.values())) == len(first)


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float32"])
def test_random_weights_have_the_dtype_and_keep_the_scale(config_file: Path, dtype: str) -> None:
    """Deviation 1 / sqrt(inputs), so activations neither vanish nor grow; norms are 1."""
    params = random_model(config_file, dtype=dtype).params
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
    with pytest.raises(ValueError, match=r"random weights and no tokenizer: give token ids instead of text"):
        moejax.decode(model, "text")


def largest_from_host(function: Callable[..., Any], *args: Any) -> int:
    """Elements of the largest array that `function(*args)` brings from the host. One that it takes back is an error."""
    traced = jax.make_jaxpr(function)(*args)
    return max((np.size(one) for one in (*args, *traced.consts)), default=0)


def test_random_weights_are_made_on_the_device(config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each is the result of a compiled function that is given a key and a hash per expert, and nothing else."""
    config = named_config(str(config_file))
    parallel = on_mesh(config)
    _, abstract = abstract_model(config, "blocked", "bfloat16", parallel)
    jit, made = jax.jit, []

    def recording_jit(function: Callable[..., Any], **options: Any) -> Callable[..., Any]:
        def call(*args: Any) -> Any:
            assert largest_from_host(function, *args) <= max(2, EXPERTS)
            made.append(jit(function, **options)(*args))
            return made[-1]

        return call

    monkeypatch.setattr(jax, "jit", recording_jit)
    params = made_params(abstract, config, 0, parallel)
    assert [id(array) for array in params.values()] == [id(array) for array in made]


def test_a_copy_from_or_to_the_host_would_be_found() -> None:
    assert largest_from_host(lambda: jax.device_put(np.ones((30, 4), np.float32))) == 120
    with pytest.raises(jax.errors.TracerArrayConversionError):
        largest_from_host(lambda: np.asarray(jax.random.normal(jax.random.key(0), (3,))))
