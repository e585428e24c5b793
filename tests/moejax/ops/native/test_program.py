"""The kernels without JAX, against float64: as AArch64 has them, emulated, and as this machine has them, sanitized.

A small program (`run_cases.cc`) computes cases from files, all of them in one run, on 1 to 8 threads.
"""

import platform
import shutil
import subprocess
from dataclasses import dataclass
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

from moejax.ops.native import build
from tests.moejax.ops.native.cases import (
    ATTENTION,
    COMPANY,
    COMPANY_SHAPE,
    DTYPES,
    EVERY_FLOAT16,
    EXPERTS,
    LAST,
    NORMS,
    PRODUCTS,
    ROTATIONS,
    ROUTES,
    Arrays,
    all_cases,
    attention_of,
    experts_of,
    named,
    normal,
    product_of,
    rotation_of,
    routing_of,
    wide,
)

COMPILER, EMULATOR, LIBRARIES = "aarch64-linux-gnu-g++", "qemu-aarch64", "/usr/aarch64-linux-gnu"
# The first of AArch64, on a CPU with nothing more; and one with products of bfloat16 (BFDOT).
EMULATED = {"armv8-a": "cortex-a53", "armv8.6-a+bf16": "max"}
SANITIZERS = ("address,undefined", "thread")
THREADS = (1, 2, 4, 8)

# Per root of the number of products: float32 sums of numbers of order 1, as in test_ops.
SUM_ATOL = 1e-5
ATTENTION_ATOL = 5e-6
# BFDOT rounds each sum to odd: off by less than a unit of the last bit, where the nearest is off by half of one.
# (It counts denormals as 0, too, as the kernels do everywhere; no sum here is near them.)
TO_ODD = 2
# Softmax weights of a prompt are rounded to bfloat16 where it is multiplied: by 2^-9 of each and so of their sum.
WEIGHT_RTOL = 2**-8
RTOL = {"float32": 2e-6, "bfloat16": 2**-8, "float16": 2**-11}  # half a unit of the last bit, as in test_rows
SMALLEST_FLOAT16 = 2**-24
ROUTE_ATOL = 1e-6
# Hidden values rounded the other way in their last bit, as in test_ops.
HIDDEN_ATOL = {"float32": 5e-6, "bfloat16": 5e-3, "float16": 1e-3}


@dataclass(frozen=True, kw_only=True)
class Run:
    """A form of the kernels and what it computed: results by name, dtype first."""

    rounds_to_odd: bool
    multiplies_bfloat16: bool
    folder: Path

    def __call__(
        self, dtype: str, name: str, result: str = "y", stored: str = "float32", threads: int = 1
    ) -> np.ndarray:
        return np.fromfile(self.folder / f"{dtype}.{name}.{result}.{threads}", jnp.dtype(stored))

    def odd(self, dtype: str) -> int:
        return TO_ODD if dtype == "bfloat16" and self.rounds_to_odd else 1


@pytest.fixture(scope="module", params=[*EMULATED, *SANITIZERS])
def run(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    form, folder = request.param, tmp_path_factory.mktemp("cases")
    program = folder / "run_cases"
    if form in EMULATED:
        compiler, forms = cross_compiler(), [f"-march={form}"]
        start = [EMULATOR, "-cpu", EMULATED[form], "-L", LIBRARIES, str(program)]
        multiplies = "bf16" in form
    else:
        compiler, start = build.find_compiler(), [str(program)]
        forms = [*build.CPU_FLAGS[platform.machine()], f"-fsanitize={form}", "-fno-sanitize-recover=all", "-g1", "-O1"]
        multiplies = "avx512_bf16" in build.cpu_features()
    flags = [flag for flag in build.FLAGS if flag != "-fPIC"]
    source = Path(__file__).parent / "run_cases.cc"
    command = [*compiler, *flags, *forms, "-pthread", f"-I{build.FOLDER}", str(source), "-o", str(program)]
    subprocess.run(command, check=True)
    for case in all_cases():
        for name, operand in case.operands.items():
            np.ascontiguousarray(operand).tofile(folder / f"{case.dtype}.{case.name}.{name}")
    (folder / "cases").write_text("".join(f"{case.line}\n" for case in all_cases()))
    done = subprocess.run([*start, str(folder)], check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert done.stdout == f"multiplies bfloat16: {multiplies:d}\n"
    # Only BFDOT rounds to odd: see TO_ODD.
    return Run(rounds_to_odd=form in EMULATED and multiplies, multiplies_bfloat16=multiplies, folder=folder)


def cross_compiler() -> list[str]:
    if missing := [program for program in (COMPILER, EMULATOR) if shutil.which(program) is None]:
        raise RuntimeError(
            f"AArch64's kernels are cross-compiled and emulated, and {' or '.join(missing)} is not on PATH; on "
            "Debian run: apt-get install -y --no-install-recommends g++-aarch64-linux-gnu qemu-user"
        )
    return [COMPILER]


dtypes = pytest.mark.parametrize("dtype", DTYPES)


def test_threads_change_no_bit(run: Run) -> None:
    for case in all_cases():
        for result, stored in case.results.items():
            one, *others = (run(case.dtype, case.name, result, stored, n) for n in THREADS)
            assert one.size
            for other in others:
                np.testing.assert_array_equal(other.view(np.uint8), one.view(np.uint8), err_msg=case.line)


@dtypes
def test_linear(dtype: str, run: Run) -> None:
    for shape in PRODUCTS:
        x, w = product_of(*shape, dtype)
        got = run(dtype, f"linear.{named(shape)}").reshape(shape[:2])
        atol = SUM_ATOL * shape[2] ** 0.5 * run.odd(dtype)
        np.testing.assert_allclose(got, wide(x) @ wide(w).T, rtol=0, atol=atol, err_msg=named(shape))


@dtypes
def test_linear_of_a_row_has_the_same_bits_in_any_company(dtype: str, run: Run) -> None:
    outputs, inputs = COMPANY_SHAPE
    alone = run(dtype, f"linear.1x{outputs}x{inputs}")
    for rows in COMPANY:
        company = run(dtype, f"linear.{rows}x{outputs}x{inputs}").reshape(rows, outputs)
        np.testing.assert_array_equal(company[-1].view(np.uint32), alone.view(np.uint32))


@dtypes
def test_experts(dtype: str, run: Run) -> None:
    for shape in EXPERTS:
        tokens, depth, _, _, experts = shape
        operands = experts_of(shape, dtype)
        x, gate, up, down = (wide(operands[name]) for name in ("x", "gate", "up", "down"))
        exact = np.zeros((tokens, depth))
        for token in range(tokens):
            for expert, weight in zip(operands["ids"][token], operands["weights"][token], strict=True):
                if expert < experts:
                    gated = gate[expert] @ x[token]
                    hidden = (gated / (1 + np.exp(-gated)) * (up[expert] @ x[token])).astype(jnp.dtype(dtype))
                    exact[token] += weight * (down[expert] @ wide(hidden))
        got = run(dtype, f"experts.{named(shape)}").reshape(tokens, depth)
        np.testing.assert_allclose(got, exact, rtol=0, atol=HIDDEN_ATOL[dtype], err_msg=named(shape))
        alone = run(dtype, f"experts.{named((1, *shape[1:]))}")
        np.testing.assert_array_equal(got[0].view(np.uint32), alone.view(np.uint32))


@dtypes
def test_a_product_below_the_normal_numbers_is_zero(dtype: str, run: Run) -> None:
    assert run(dtype, "linear.tiny").tolist() == [0.0]


def test_every_float16_is_widened(run: Run) -> None:
    """Exactly, those below its smallest normal number included, although float32's count as 0."""
    np.testing.assert_array_equal(run("float16", "linear.every"), EVERY_FLOAT16.astype(np.float32))


@dtypes
def test_norm(dtype: str, run: Run) -> None:
    for shape in NORMS:
        x, scale = wide(normal(shape, dtype)), wide(normal(shape[1:], dtype, 1))
        exact = x / np.sqrt((x**2).mean(axis=-1, keepdims=True) + 1e-5) * scale
        got = run(dtype, f"norm.{named(shape)}", stored=dtype).reshape(shape)
        np.testing.assert_allclose(wide(got), exact, rtol=RTOL[dtype], atol=1e-7)
    last = run(dtype, f"norm.{named(NORMS[-1])}", stored=dtype)[-NORMS[-1][1] :]
    np.testing.assert_array_equal(run(dtype, "norm.alone", stored=dtype), last)


def attended(operands: Arrays, window: int, soft_cap: int) -> np.ndarray:
    """Softmax attention in float64 of the positions that each query sees, and of the sinks."""
    q, k, v = (wide(operands[name]) for name in "qkv")
    position = operands["starts"][:, None] + np.arange(q.shape[3])
    distance = position[..., None] - np.arange(k.shape[2])  # B T S
    seen = (distance >= 0) & ((distance < window) | (window == 0))
    score = np.einsum("bkgth,bksh->bkgts", q, k) / q.shape[-1] ** 0.5
    score = np.where(seen[:, None, None], soft_cap * np.tanh(score / soft_cap) if soft_cap else score, -np.inf)
    sinks = operands.get("sinks", np.full(q.shape[1:3], -np.inf))[None, :, :, None, None]
    score = np.concatenate([score, np.broadcast_to(sinks, (*score.shape[:-1], 1))], axis=-1)
    weight = np.exp(score - score.max(axis=-1, keepdims=True))
    return np.einsum("bkgts,bksh->bkgth", (weight / weight.sum(axis=-1, keepdims=True))[..., :-1], v)


@dtypes
def test_attend(dtype: str, run: Run) -> None:
    for shape in ATTENTION:
        operands = attention_of(shape, dtype)
        got = run(dtype, f"attend.{named(shape)}").reshape(operands["q"].shape)
        rounded = dtype == "bfloat16" and run.multiplies_bfloat16 and shape[3] > 1
        atol = ATTENTION_ATOL * run.odd(dtype) + rounded * WEIGHT_RTOL * np.abs(wide(operands["v"])).max()
        np.testing.assert_allclose(got, attended(operands, *shape[6:8]), rtol=0, atol=atol, err_msg=named(shape))
        if shape[3] > LAST:
            alone = run(dtype, f"attend.{named(shape)}.alone")
            np.testing.assert_array_equal(got[-1, :, :, -LAST:].ravel().view(np.uint32), alone.view(np.uint32))


@dtypes
def test_rotate_into_cache(dtype: str, run: Run) -> None:
    for shape in ROTATIONS:
        b, t, n, k, s, h = shape
        operands = rotation_of(shape)
        cos, sin = (wide(operands[name])[:, :, None] for name in ("cos", "sin"))

        def rotated(x: np.ndarray, cos: np.ndarray = cos, sin: np.ndarray = sin) -> np.ndarray:
            first, second = np.split(wide(x), 2, axis=-1)
            return np.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1)

        caches = {"k": np.zeros((b, k, s, h)), "v": np.zeros((b, k, s, h))}
        for row, start in enumerate(np.minimum(operands["starts"], s - t)):
            caches["k"][row, :, start : start + t] = rotated(operands["k"])[row].swapaxes(0, 1)
            caches["v"][row, :, start : start + t] = operands["v"][row].swapaxes(0, 1)
        exact = {"q": rotated(operands["q"]).swapaxes(1, 2), **caches}
        atol = {"q": 1e-6, "k": 1e-6, "v": SMALLEST_FLOAT16 / 2 if dtype == "float16" else 0.0}
        for name, expected in exact.items():
            got = wide(run(dtype, f"rotate.{named(shape)}", name, dtype)).reshape(expected.shape)
            np.testing.assert_allclose(got, expected, rtol=RTOL[dtype], atol=atol[name], err_msg=f"{name} {shape}")


def test_route(run: Run) -> None:
    for tokens, experts, chosen in ROUTES:
        operands = routing_of(tokens, experts)
        name, valid = f"route.{named((tokens, experts, chosen))}", operands["valid"].astype(bool)
        ids, weights = (
            run("float32", name, result, stored).reshape(tokens, chosen)
            for result, stored in (("ids", "int32"), ("weights", "float32"))
        )
        best = np.argsort(-operands["logits"], axis=-1, kind="stable")[:, :chosen]  # ties to the lower id
        share = np.exp(wide(np.take_along_axis(operands["logits"], best, axis=-1)))
        share /= share.sum(axis=-1, keepdims=True)
        np.testing.assert_array_equal(ids, np.where(valid[:, None], best, experts))
        np.testing.assert_allclose(weights, np.where(valid[:, None], share, 0), rtol=0, atol=ROUTE_ATOL)
