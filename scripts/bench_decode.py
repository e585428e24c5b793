"""Times decoding and prefill against Hugging Face transformers: same weights, same process, interleaved rounds.

    python scripts/bench_decode.py --model 186m --batch-size 1,8,16 --rounds 5

Needs the `test` extra (torch, transformers). Writes a random bfloat16 checkpoint of the chosen shape to a temporary
folder, loads it into both, feeds both the same prompts of token ids, and prints the median tokens per second of each,
the spread over the rounds, and the ratio of each round. Warm-up and compilation are excluded for all. Times are of
this machine, which is named at the top of the table. With --mesh, moejax also runs on meshes of the devices that are
here: `--mesh all --peers ""` on a machine with several GPUs times every split that fits.
"""

import argparse
import json
import os
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import torch
import transformers

import moejax
from moejax.verification.meshes import fitting_meshes
from sharding import MeshConfig

Reference = Any  # a MixtralForCausalLM; transformers annotates `generate` and `to` in ways no checker accepts

SHAPES: dict[str, dict[str, Any]] = {
    "186m": dict(hidden_size=512, intermediate_size=1792, num_attention_heads=8, num_key_value_heads=4, head_dim=64),
    "742m": dict(hidden_size=1024, intermediate_size=3584, num_attention_heads=16, num_key_value_heads=4, head_dim=64),
}
COMMON: dict[str, Any] = dict(num_hidden_layers=8, num_local_experts=8, num_experts_per_tok=2, vocab_size=8192)

Contender = Callable[[list[list[int]], int], float]  # (prompts, new tokens) -> seconds


@dataclass(frozen=True, kw_only=True)
class Measurement:
    """Seconds of every round for one contender on one piece of work; `tokens` were processed in each."""

    work: str
    contender: str
    tokens: int
    seconds: list[float]

    @property
    def rate(self) -> float:
        """Tokens per second in the median round."""
        return self.tokens / statistics.median(self.seconds)


def main() -> None:
    args = parse_args()
    torch.set_num_threads(args.threads)
    shape = SHAPES[args.model]
    print(f"machine: {machine()}; threads {args.threads}")
    print(f"moejax {moejax.__version__}, jax {jax.__version__}, transformers {transformers.__version__}, ", end="")
    print(f"torch {torch.__version__}; model {args.model} bfloat16, {args.rounds} rounds\n")
    with tempfile.TemporaryDirectory() as folder:
        reference = make_checkpoint(Path(folder), shape)
        ours = load_splits(folder, args)
        measurements: list[Measurement] = []
        for batch in args.batch_size:
            contenders = decode_contenders(ours, reference, args.peers)
            work = f"decode, batch {batch}"
            prompts = random_prompts(batch, args.input_len)
            measurements += race(work, contenders, prompts, args.output_len, args.rounds, batch * (args.output_len - 1))
            report(measurements[-len(contenders) :])
        if args.prefill_len:
            contenders = prefill_contenders(ours, reference)
            prompts = random_prompts(1, args.prefill_len)
            work = f"prefill of {args.prefill_len}"
            measurements += race(work, contenders, prompts, 1, args.rounds, args.prefill_len)
            report(measurements[-len(contenders) :])
    if args.json:
        Path(args.json).write_text(json.dumps([asdict(m) for m in measurements], indent=1))


def parse_args() -> argparse.Namespace:
    whole_list = lambda text: [int(part) for part in text.split(",")]  # noqa: E731
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", choices=SHAPES, default="186m")
    parser.add_argument("-b", "--batch-size", type=whole_list, default=[1, 8, 16], help="comma-separated")
    parser.add_argument("-p", "--input-len", type=int, default=128, help="prompt tokens before decoding is timed")
    parser.add_argument("-n", "--output-len", type=int, default=64, help="tokens generated per row")
    parser.add_argument(
        "--prefill-len", type=int, default=512, help="prompt tokens of the prefill race; 0 leaves it out"
    )
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--peers", default="generate,compiled", help="generate, compiled, both with a comma, or nothing"
    )
    parser.add_argument("--expert-backend", default="auto")
    parser.add_argument(
        "--mesh",
        action="append",
        default=[],
        help="also time moejax on this mesh, repeatable; all: on every mesh that fits",
    )
    parser.add_argument("--dispatch", default="auto", help="of the meshes: auto, replicated, gather, all_to_all")
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--json", help="also write every sample to this file")
    return parser.parse_args()


def make_checkpoint(folder: Path, shape: dict[str, Any]) -> Reference:
    """A random bfloat16 Mixtral, in memory and saved to `folder`."""
    torch.manual_seed(0)
    config = transformers.MixtralConfig(**COMMON, **shape, max_position_embeddings=4096, dtype="bfloat16")
    model: Reference = transformers.MixtralForCausalLM(config)
    model = model.to(torch.bfloat16).eval()
    model.save_pretrained(folder)
    return model


def random_prompts(batch: int, length: int) -> list[list[int]]:
    return np.random.default_rng(length).integers(3, COMMON["vocab_size"], (batch, length)).tolist()


def load_splits(folder: str, args: argparse.Namespace) -> dict[str, moejax.Model]:
    """The model on one device, and on each mesh that was asked for, by the contender's name."""
    load = partial(moejax.load, folder, dtype="bfloat16", expert_backend=args.expert_backend)
    models = {"moejax": load()}
    meshes = [MeshConfig.parse(text) for text in args.mesh if text != "all"]
    if "all" in args.mesh:
        meshes += fitting_meshes(models["moejax"].config, jax.device_count())
    for mesh in meshes:
        model = load(mesh=mesh, dispatch=args.dispatch)
        models[f"moejax {mesh} {model.dispatch}"] = model
    if meshes and jax.default_backend() == "cpu":
        print("The meshes are of simulated devices, which share this machine's cores: their times say nothing.\n")
    return models


def decode_contenders(ours: Mapping[str, moejax.Model], reference: Reference, peers: str) -> dict[str, Contender]:
    """Functions that time the tokens after the first."""
    contenders: dict[str, Contender] = {name: partial(decode_moejax, model) for name, model in ours.items()}
    for peer in filter(None, peers.split(",")):
        if peer == "generate":
            contenders["transformers generate"] = lambda prompts, new: decode_generate(reference, prompts, new)
        elif peer == "compiled":
            for experts in ("grouped_mm", "batched_mm"):
                contenders[f"transformers static cache + compile, {experts}"] = compiled_contender(reference, experts)
        else:
            sys.exit(f"unknown peer {peer!r}; the known ones are generate and compiled")
    return contenders


def decode_moejax(model: moejax.Model, prompts: list[list[int]], new: int) -> float:
    return moejax.decode(model, prompts, max_tokens=new, ignore_eos=True)[0].stats.decode_seconds


def decode_generate(model: Reference, prompts: list[list[int]], new: int) -> float:
    """Plain `generate`: its time for `new` tokens less its time for one, both measured here."""
    ids = torch.tensor(prompts)
    seconds = []
    for count in (1, new):
        began = time.perf_counter()
        with torch.inference_mode():
            model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=count,
                min_new_tokens=count,
                do_sample=False,
                pad_token_id=0,
            )
        seconds.append(time.perf_counter() - began)
    return seconds[1] - seconds[0]


def compiled_contender(model: Reference, experts: str) -> Contender:
    """A greedy loop over a compiled forward with a static cache: transformers' fastest form on CPU."""
    steps: dict[int, Callable[..., torch.Tensor]] = {}

    def run(prompts: list[list[int]], new: int) -> float:
        default = model.config._experts_implementation
        model.set_experts_implementation(experts)
        try:
            return decode_compiled(model, prompts, new, steps)
        finally:
            model.set_experts_implementation(default)

    return run


def decode_compiled(
    model: Reference,
    prompts: list[list[int]],
    new: int,
    steps: dict[int, Callable[..., torch.Tensor]],
) -> float:
    batch, length = len(prompts), len(prompts[0])
    if batch not in steps:

        def step(token: torch.Tensor, cache: transformers.StaticCache, position: torch.Tensor) -> torch.Tensor:
            out = model(token, past_key_values=cache, position_ids=position[None].expand(batch, 1), use_cache=True)
            return out.logits[:, -1].argmax(-1, keepdim=True)

        torch._dynamo.reset()
        steps.clear()
        steps[batch] = torch.compile(step, dynamic=False)
    with torch.inference_mode():
        cache = transformers.StaticCache(config=model.config, max_cache_len=length + new)
        token = (
            model(torch.tensor(prompts), past_key_values=cache, use_cache=True).logits[:, -1].argmax(-1, keepdim=True)
        )
        began = time.perf_counter()
        for position in range(length, length + new - 1):
            token = steps[batch](token, cache, torch.tensor([position]))
        return time.perf_counter() - began


def prefill_contenders(ours: Mapping[str, moejax.Model], reference: Reference) -> dict[str, Contender]:
    """Functions that time a prompt up to its first token."""

    def prefill_reference(prompts: list[list[int]], new: int) -> float:
        began = time.perf_counter()
        with torch.inference_mode():
            reference(torch.tensor(prompts), use_cache=True, logits_to_keep=1).logits.argmax(-1).tolist()
        return time.perf_counter() - began

    def prefill_moejax(model: moejax.Model, prompts: list[list[int]], new: int) -> float:
        return moejax.decode(model, prompts, max_tokens=1, ignore_eos=True)[0].stats.ttft_seconds

    contenders: dict[str, Contender] = {name: partial(prefill_moejax, model) for name, model in ours.items()}
    return contenders | {"transformers forward": prefill_reference}


def race(
    work: str, contenders: dict[str, Contender], prompts: list[list[int]], new: int, rounds: int, tokens: int
) -> list[Measurement]:
    """Runs the contenders in turn, `rounds` times, after one warm-up each."""
    seconds: dict[str, list[float]] = {name: [] for name in contenders}
    for contender in contenders.values():
        contender(prompts, new)
    for _ in range(rounds):
        for name, contender in contenders.items():
            seconds[name].append(contender(prompts, new))
    return [Measurement(work=work, contender=name, tokens=tokens, seconds=times) for name, times in seconds.items()]


def report(measurements: Sequence[Measurement]) -> None:
    """One table: median rate, spread, and moejax's rate over each peer's, round by round."""
    ours = measurements[0]
    print(f"{measurements[0].work:44s} {'tok/s':>8s} {'min':>8s} {'max':>8s}   moejax / peer: median (min to max)")
    for m in measurements:
        rates = sorted(m.tokens / s for s in m.seconds)
        ratios = sorted(theirs / mine for mine, theirs in zip(ours.seconds, m.seconds, strict=True))
        ratio = f"{statistics.median(ratios):.2f} ({ratios[0]:.2f} to {ratios[-1]:.2f})" if m is not ours else ""
        print(f"  {m.contender:42s} {m.rate:8.1f} {rates[0]:8.1f} {rates[-1]:8.1f}   {ratio}", flush=True)
    print()


def machine() -> str:
    """The processor, as the kernel names it."""
    cpuinfo = Path("/proc/cpuinfo")
    names = [
        line.split(":", 1)[1].strip() for line in cpuinfo.read_text().splitlines() if line.startswith("model name")
    ]
    return f"{names[0] if names else platform.processor()}, {os.cpu_count()} cores, {platform.system()}"


if __name__ == "__main__":
    main()
