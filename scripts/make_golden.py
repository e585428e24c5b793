"""Write the golden files that let the tests compare moejax with transformers where torch is not installed.

    python scripts/make_golden.py --out tests/golden

Each folder NAME holds a tiny random Mixtral in Hugging Face format (config.json, model.safetensors in float32) and
golden.npz, what transformers computes from it in float32 with eager attention and eager experts:

    prompt_0, prompt_1, ...     int32 [T], prompts of different lengths
    greedy                      int32 [prompts, NEW_TOKENS], the greedy continuations from `generate`
    logits_0, logits_1, ...     float32 [T + NEW_TOKENS - 1, V], teacher-forced over prompt and continuation
    logit_gap, router_gap       float32, the smallest distances to a tie, see `Reference`
    seed, transformers, torch   what made it

A seed is taken only if no choice in any continuation is near a tie, so tests may demand identical tokens. Seeds are
searched from 0, so the same versions of torch and transformers give the same folders.
"""

import argparse
import json
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import numpy as np
import torch
import transformers
from transformers import MixtralConfig, MixtralForCausalLM

NEW_TOKENS = 64
PROMPT_LENGTHS = (1, 7, 20)
MIN_LOGIT_GAP = 4e-4  # twice the tolerance on logits (2e-4), so that tokens cannot differ where logits agree
MIN_ROUTER_GAP = 1e-4  # about 100 times the float32 rounding error of router logits of order 1
MIN_DISTINCT_TOKENS = 12  # in one continuation: one that repeats a token shows little

Spelling = Literal["v4", "v5"]


@dataclass(frozen=True, kw_only=True)
class Golden:
    """One committed model: fields of MixtralConfig that differ from `BASE`, and how its config.json is spelled."""

    fields: Mapping[str, Any]
    spelling: Spelling = "v5"


BASE: Mapping[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "intermediate_size": 24,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "num_local_experts": 4,
    "num_experts_per_tok": 2,
    "max_position_embeddings": 128,
    "rope_parameters": {"rope_type": "default", "rope_theta": 1e6},
    "bos_token_id": None,
    "eos_token_id": None,
}
GOLDENS: Mapping[str, Golden] = {
    "grouped_query": Golden(fields={}),
    "sliding_window": Golden(
        fields={
            "sliding_window": 8,
            "num_key_value_heads": 1,
            "num_local_experts": 5,
            "rope_parameters": {"rope_type": "default", "rope_theta": 1e4},
        },
        spelling="v4",
    ),
    "tied_head_dim": Golden(
        fields={
            "tie_word_embeddings": True,
            "head_dim": 16,
            "num_key_value_heads": 4,
            "vocab_size": 101,
            "rms_norm_eps": 1e-3,
        }
    ),
    "top1": Golden(fields={"num_experts_per_tok": 1, "rope_parameters": {"rope_type": "default", "rope_theta": 5e4}}),
    "top4_of_16": Golden(fields={"num_experts_per_tok": 4, "num_local_experts": 16, "intermediate_size": 8}),
}


@dataclass(frozen=True, kw_only=True)
class Reference:
    """What transformers computes for one prompt of T tokens, followed greedily for G tokens."""

    prompt: list[int]
    tokens: list[int]  # [G]
    logits: np.ndarray  # float32 [T + G - 1, V], row t predicts token t + 1
    logit_gaps: np.ndarray  # [G] best minus second-best logit, where each token was chosen
    router_gaps: np.ndarray  # [G] smallest A-th minus (A+1)-th router logit over layers and positions behind a token


def config_from(fields: Mapping[str, Any]) -> MixtralConfig:
    """`BASE` with `fields` replaced."""
    return MixtralConfig(**{**BASE, **fields})


def random_mixtral(config: MixtralConfig, seed: int) -> MixtralForCausalLM:
    """A float32 Mixtral whose weights are large enough that every part of it shows in the logits.

    Each layer adds about as much to the residual stream as the embedding brings, router logits have a deviation of
    about 2 and output logits of about 3. Each weight depends on `seed` and its name only.
    """
    model = MixtralForCausalLM(config).float().eval()
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")
    with torch.no_grad():
        for name, weight in model.named_parameters():
            values = np.random.default_rng([seed, zlib.crc32(name.encode())]).standard_normal(weight.shape)
            if "norm" in name:
                values = 1 + 0.2 * values
            elif "embed_tokens" in name:
                values *= 3 / config.hidden_size**0.5 if config.tie_word_embeddings else 1
            elif "lm_head" in name:
                values *= 3 / config.hidden_size**0.5
            else:
                gain = 2 if "gate.weight" in name or "q_proj" in name else 1.5
                values *= gain / weight.shape[-1] ** 0.5
            weight.copy_(torch.from_numpy(values))
    return model


def save_folder(model: MixtralForCausalLM, folder: Path, *, spelling: Spelling = "v5", **options: Any) -> None:
    """Saves `model` in Hugging Face format; `v4` spells config.json as transformers 4 did.

    `options` go to `save_pretrained`.
    """
    model.save_pretrained(folder, **options)
    if spelling == "v4":
        path = folder / "config.json"
        raw = json.loads(path.read_text(encoding="utf-8"))
        raw["torch_dtype"] = raw.pop("dtype")
        raw["rope_theta"] = raw.pop("rope_parameters")["rope_theta"]
        raw["transformers_version"] = "4.36.0"
        if raw["head_dim"] is None:
            del raw["head_dim"]
        path.write_text(json.dumps(raw, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def random_prompts(config: MixtralConfig, seed: int, lengths: Sequence[int]) -> list[list[int]]:
    """Uniform random token ids, one prompt for each of `lengths`."""
    rng = np.random.default_rng([seed, 1])
    return [rng.integers(0, config.vocab_size, size=length).tolist() for length in lengths]


@torch.no_grad()
def reference(model: MixtralForCausalLM, prompt: Sequence[int], new_tokens: int = NEW_TOKENS) -> Reference:
    """Follows `prompt` greedily with `generate` (cached), then scores the whole with one uncached forward pass.

    Raises:
        RuntimeError: when the two disagree at a token that is not a near-tie, which is a fault of the reference.
    """
    config = model.config
    ids = torch.tensor([list(prompt)])
    generated = cast(Any, model).generate(  # cast: transformers' own annotations reject its models here
        ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=new_tokens, pad_token_id=0
    )
    tokens = generated[0, len(prompt) :].tolist()
    output = model(generated[:, :-1], output_router_logits=True, use_cache=False)
    logits = output.logits[0].float()
    best = logits[len(prompt) - 1 :].topk(2, dim=-1)
    logit_gaps = (best.values[:, 0] - best.values[:, 1]).numpy()
    top = config.num_experts_per_tok
    if top == config.num_local_experts:
        router_gaps = np.full(new_tokens, np.inf, np.float32)
    else:
        ranked = torch.stack(list(output.router_logits)).float().sort(dim=-1, descending=True).values  # [L, T, E]
        worst = (ranked[..., top - 1] - ranked[..., top]).amin(dim=0).cummin(dim=0).values
        router_gaps = worst[len(prompt) - 1 :].numpy()
    differs = np.array(tokens) != best.indices[:, 0].numpy()
    if np.any(differs & (logit_gaps > 1e-5) & (router_gaps > 1e-5)):
        raise RuntimeError(f"transformers' cached and uncached tokens differ at step {int(differs.argmax())}")
    return Reference(
        prompt=list(prompt), tokens=tokens, logits=logits.numpy(), logit_gaps=logit_gaps, router_gaps=router_gaps
    )


def is_decisive(references: Sequence[Reference]) -> bool:
    """Whether no token or expert was chosen near a tie, and no continuation is stuck on a few tokens."""
    return all(
        one.logit_gaps.min() >= MIN_LOGIT_GAP
        and one.router_gaps.min() >= MIN_ROUTER_GAP
        and len(set(one.tokens)) >= MIN_DISTINCT_TOKENS
        for one in references
    )


def find_decisive(config: MixtralConfig) -> tuple[int, MixtralForCausalLM, list[Reference]]:
    """The first seed from 0 that `is_decisive`, its model and what that computes."""
    seed = 0
    while True:
        model = random_mixtral(config, seed)
        references = [reference(model, prompt) for prompt in random_prompts(config, seed, PROMPT_LENGTHS)]
        if is_decisive(references):
            return seed, model, references
        seed += 1


def make_golden(name: str, out: Path) -> str:
    """Writes the folder of one of `GOLDENS` under `out`; returns a line that says what it holds."""
    golden = GOLDENS[name]
    seed, model, references = find_decisive(config_from(golden.fields))
    folder = out / name
    save_folder(model, folder, spelling=golden.spelling)
    arrays: dict[str, Any] = {
        "greedy": np.array([one.tokens for one in references], np.int32),
        "logit_gap": np.float32(min(one.logit_gaps.min() for one in references)),
        "router_gap": np.float32(min(one.router_gaps.min() for one in references)),
        "seed": np.int32(seed),
        "transformers": np.str_(transformers.__version__),
        "torch": np.str_(torch.__version__),
    }
    for i, one in enumerate(references):
        arrays[f"prompt_{i}"] = np.array(one.prompt, np.int32)
        arrays[f"logits_{i}"] = one.logits
    np.savez_compressed(folder / "golden.npz", **arrays)
    size = sum(path.stat().st_size for path in folder.iterdir())
    distinct = [len(set(one.tokens)) for one in references]
    return (
        f"{name:15} seed {seed:3}  logit gap {arrays['logit_gap']:.1e}  router gap {arrays['router_gap']:.1e}  "
        f"distinct tokens {distinct}  {size / 1000:.0f} kB"
    )


def main() -> None:
    """Parses the arguments and writes the folders."""
    parser = argparse.ArgumentParser(description="Write the golden files of the tests.")
    parser.add_argument("--out", type=Path, default=Path("tests/golden"), help="folder to write to")
    parser.add_argument("--only", choices=sorted(GOLDENS), help="one model instead of all")
    arguments = parser.parse_args()
    transformers.utils.logging.disable_progress_bar()
    for name in [arguments.only] if arguments.only else GOLDENS:
        print(make_golden(name, arguments.out), flush=True)


if __name__ == "__main__":
    main()
