"""Train, export and check the small Mixtral checkpoint that ships with the package.

The text is what every Python installation carries: the help topics of `pydoc_data.topics` and the docstrings of the
standard library that are longer than 200 characters. The model is `transformers.MixtralForCausalLM` at a very small
size, trained on the CPU. torch, transformers and tokenizers are needed here and nowhere in the package.

Train (about 15 minutes on one core) and write the folder:

    python -m scripts.train_demo --out moejax/checkpoints/demo

This writes config.json, generation_config.json, model.safetensors (bfloat16), tokenizer.json, tokenizer_config.json and
training.json, which holds every number that the folder's README.md quotes. README.md itself is written by hand.

Check a folder: recompute the losses, the expert shares and the greedy continuations from its files alone:

    python -m scripts.train_demo --evaluate moejax/checkpoints/demo

Documents are split by a hash of their name: 1/20 are held out (reported, never trained on or tuned on) and 1/20 are
validation (watched in training; chooses the n-gram discounts). The text differs between versions of Python, so numbers
repeat exactly only with the version named in training.json; `--evaluate` says when the text is another one.
"""

import argparse
import json
import math
import platform
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers
import torch
import transformers
from transformers import (
    AutoTokenizer,
    GenerationConfig,
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedTokenizerFast,
)

from scripts.demo_corpus import (
    BOS_ID,
    EOS_ID,
    MAX_POSITIONS,
    VOCAB_SIZE,
    Documents,
    bigram_loss,
    corpus,
    corpus_digest,
    encode,
    split_of,
    train_tokenizer,
    tuned_ngram_loss,
)

PROMPTS = ("Convert a", "A dictionary", "Called when")
POSITIONS = (0, 64, 192, 512, 768, 1024)  # edges of the ranges that the loss is also reported for
NEW_TOKENS = 80


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """Everything that decides the trained weights, besides the text and the versions of the libraries."""

    seed: int = 0
    steps: int = 2600
    tokens_per_step: int = 2304
    contexts: tuple[int, ...] = (192, 192, 192, 768)  # cycled over; each divides tokens_per_step
    peak_lr: float = 3e-3
    final_lr: float = 1e-4
    warmup_steps: int = 100
    weight_decay: float = 0.1
    initializer_range: float = 0.05  # Mixtral's 0.02 is small for 128 channels and learns slowly
    router_aux_loss_coef: float = 0.01  # of `balance_loss`
    gradient_clip: float = 1.0
    validate_every: int = 200


# --- model and training ----------------------------------------------------------------------------------------------


def model_config(recipe: Recipe) -> MixtralConfig:
    """Return the configuration of the demo model: 3.9 million parameters, heads and experts that divide by 8."""
    return MixtralConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=4,
        num_attention_heads=8,
        num_key_value_heads=4,
        head_dim=16,
        num_local_experts=8,
        num_experts_per_tok=2,
        max_position_embeddings=MAX_POSITIONS,
        sliding_window=None,
        initializer_range=recipe.initializer_range,
        tie_word_embeddings=False,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        router_aux_loss_coef=recipe.router_aux_loss_coef,
        bos_token_id=BOS_ID,
        eos_token_id=EOS_ID,
        pad_token_id=None,
    )


def batches(train: Documents, recipe: Recipe) -> Iterator[torch.Tensor]:
    """Yield (batch, context) token ids without end: documents shuffled each epoch and joined, cut at random offsets."""
    rng = np.random.default_rng(recipe.seed)
    stream = np.zeros(0, dtype=np.int64)
    step = 0
    while True:
        context = recipe.contexts[step % len(recipe.contexts)]
        rows = recipe.tokens_per_step // context
        while len(stream) < rows * context:
            shuffled = np.concatenate([np.array(train[i]) for i in rng.permutation(len(train))])
            stream = np.concatenate([stream, shuffled])
        yield torch.from_numpy(stream[: rows * context].reshape(rows, context))
        stream = stream[rows * context :]
        step += 1


def balance_loss(router_logits: Sequence[torch.Tensor], top_k: int) -> torch.Tensor:
    """Return the load-balancing loss of Mixtral, each layer by itself and averaged over the layers (at least `top_k`).

    transformers joins the layers before it counts, so that a dead expert of one layer is paid for by the same index in
    another; with that loss whole experts died here. Fedus et al. 2021, equations 4 to 6.
    """
    losses = []
    for logits in router_logits:
        probs = logits.softmax(dim=-1)
        experts = probs.shape[-1]
        chosen = probs.topk(top_k, dim=-1).indices
        per_token = torch.bincount(chosen.flatten(), minlength=experts) / len(probs)
        losses.append(experts * (per_token * probs.mean(dim=0)).sum())
    return torch.stack(losses).mean()


def learning_rate(step: int, recipe: Recipe) -> float:
    """Return the rate at a step: linear warm-up, then a half cosine from the peak to the final rate."""
    if step < recipe.warmup_steps:
        return recipe.peak_lr * (step + 1) / recipe.warmup_steps
    done = (step - recipe.warmup_steps) / max(1, recipe.steps - recipe.warmup_steps)
    return recipe.final_lr + (recipe.peak_lr - recipe.final_lr) * 0.5 * (1 + math.cos(math.pi * done))


def make_optimizer(model: MixtralForCausalLM, recipe: Recipe) -> torch.optim.AdamW:
    """Return AdamW that decays matrices and leaves the norms alone."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": recipe.weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=recipe.peak_lr, betas=(0.9, 0.98), fused=True)


def train(
    train_documents: Documents, validation: Documents, recipe: Recipe, *, log: Callable[[str], None] = print
) -> tuple[MixtralForCausalLM, dict[str, Any]]:
    """Train from random weights; return the model after the last step, and the history of its losses."""
    torch.manual_seed(recipe.seed)
    model = MixtralForCausalLM(model_config(recipe))
    optimizer = make_optimizer(model, recipe)
    source = batches(train_documents, recipe)
    history: list[dict[str, float]] = []
    running: list[float] = []
    start = time.perf_counter()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, recipe)
        ids = next(source)
        model.train()
        output = model(input_ids=ids, output_router_logits=True)
        targets = ids[:, 1:]
        loss = torch.nn.functional.cross_entropy(output.logits[:, :-1].flatten(0, 1), targets.flatten())
        balance = balance_loss(output.router_logits, model.config.num_experts_per_tok)
        (loss + recipe.router_aux_loss_coef * balance).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.gradient_clip)
        optimizer.step()
        optimizer.zero_grad()
        running.append(loss.item())
        if (step + 1) % recipe.validate_every == 0 or step + 1 == recipe.steps:
            validation_loss, shares = document_losses(model, validation)
            record = {
                "step": step + 1,
                "train": round(float(np.mean(running)), 4),
                "validation": validation_loss,
                "smallest_share": round(float(shares.min()), 4),
                "largest_share": round(float(shares.max()), 4),
            }
            history.append(record)
            running.clear()
            log(f"{time.perf_counter() - start:6.0f} s  {record}")
    return model, {"training_seconds": round(time.perf_counter() - start), "history": history}


# --- evaluation ------------------------------------------------------------------------------------------------------


@torch.no_grad()
def document_losses(model: MixtralForCausalLM, documents: Documents) -> tuple[float, np.ndarray]:
    """Return nats per token after bos, and each expert's share of the routed (token, slot) pairs of each layer.

    Every token is predicted once. A document longer than the model's context continues in a fresh window, whose first
    input is the last token that was predicted. Shares have shape (layers, experts) and sum to 1 over the experts.
    """
    model.eval()
    config = model.config
    window = config.max_position_embeddings
    assigned = np.zeros((config.num_hidden_layers, config.num_local_experts))
    loss, tokens = 0.0, 0
    for ids in documents:
        for start in range(0, len(ids) - 1, window):
            piece = torch.tensor([ids[start : start + window + 1]])
            output = model(input_ids=piece[:, :-1], output_router_logits=True, use_cache=False)
            logits = output.logits[0].float()
            loss += torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="sum").item()
            tokens += piece.shape[1] - 1
            for layer, router in enumerate(output.router_logits):
                chosen = router.float().topk(config.num_experts_per_tok, dim=-1).indices.flatten()
                assigned[layer] += np.bincount(chosen.numpy(), minlength=config.num_local_experts)
    return round(loss / tokens, 4), assigned / assigned.sum(axis=1, keepdims=True)


@torch.no_grad()
def position_losses(model: MixtralForCausalLM, documents: Documents) -> dict[str, float]:
    """Return nats per token by the position of the input token, on every full-length window of the documents.

    The same tokens are never compared with a short context and a long one; read it for a jump, not for the slope.
    """
    model.eval()
    window = model.config.max_position_embeddings
    losses = []
    for ids in documents:
        for start in range(0, len(ids) - window, window):
            piece = torch.tensor([ids[start : start + window + 1]])
            logits = model(input_ids=piece[:, :-1], use_cache=False).logits[0].float()
            losses.append(torch.nn.functional.cross_entropy(logits, piece[0, 1:], reduction="none"))
    mean = torch.stack(losses).mean(dim=0)
    ranges = zip(POSITIONS[:-1], POSITIONS[1:], strict=True)
    return {f"{low}-{high - 1}": round(mean[low:high].mean().item(), 4) for low, high in ranges}


@torch.no_grad()
def continuation(model: Any, tokenizer: Any, prompt: str, new_tokens: int = NEW_TOKENS) -> str:
    """Return the prompt and its greedy continuation, to the end of the document or `new_tokens` tokens."""
    inputs = tokenizer(prompt, return_tensors="pt")
    ids = model.generate(
        input_ids=inputs["input_ids"],
        attention_mask=inputs["attention_mask"],
        do_sample=False,
        max_new_tokens=new_tokens,
        pad_token_id=EOS_ID,
    )
    return tokenizer.decode(ids[0], skip_special_tokens=True)


def evaluate(folder: str | Path, *, dtype: torch.dtype = torch.float32) -> dict[str, Any]:
    """Return the losses, the baselines, the expert shares and the continuations, from the files of the folder alone.

    The weights are the stored bfloat16 ones whatever `dtype` is: it is the type that the arithmetic is done in.
    """
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = MixtralForCausalLM.from_pretrained(folder, dtype=dtype)
    documents = corpus()
    parts = {split: encode(tokenizer, documents, split) for split in ("train", "validation", "heldout")}
    heldout_loss, shares = document_losses(model, parts["heldout"])
    bigram = bigram_loss(parts["train"], parts["validation"], parts["heldout"])
    trigram = tuned_ngram_loss(parts["train"], parts["validation"], parts["heldout"], order=3)
    return {
        "corpus": {
            "python": platform.python_version(),
            "sha256": corpus_digest(documents),
            "documents": {split: len(part) for split, part in parts.items()},
            "predicted_tokens": {split: sum(len(ids) - 1 for ids in part) for split, part in parts.items()},
        },
        "heldout_loss": heldout_loss,
        "validation_loss": document_losses(model, parts["validation"])[0],
        "train_loss": document_losses(model, parts["train"][::10])[0],  # every tenth document
        "heldout_loss_by_position": position_losses(model, parts["heldout"]),
        "bigram_loss": round(bigram, 4),
        "trigram_loss": round(trigram, 4),
        "heldout_over_bigram": round(heldout_loss / bigram, 4),
        "expert_shares": shares.round(4).tolist(),
        "continuations": {prompt: continuation(model, tokenizer, prompt) for prompt in PROMPTS},
    }


def report(result: dict[str, Any]) -> str:
    """Return the result of `evaluate` as text."""
    corpus_info = result["corpus"]
    lines = [
        f"corpus of Python {corpus_info['python']}, sha256 {corpus_info['sha256'][:16]}",
        f"documents {corpus_info['documents']}, predicted tokens {corpus_info['predicted_tokens']}",
        f"nats per token: held out {result['heldout_loss']}, validation {result['validation_loss']}, "
        f"training (every tenth document) {result['train_loss']}",
        f"same held-out tokens: bigram {result['bigram_loss']}, trigram {result['trigram_loss']}; "
        f"model / bigram {result['heldout_over_bigram']}",
        f"held out by position in windows of {MAX_POSITIONS}: {result['heldout_loss_by_position']}",
        "share of the held-out tokens' (token, slot) pairs, in percent:",
    ]
    for layer, shares in enumerate(result["expert_shares"]):
        lines.append(f"  layer {layer}: " + "  ".join(f"{100 * share:5.1f}" for share in shares))
    for text in result["continuations"].values():
        lines += ["", "-" * 80, text]
    return "\n".join(lines)


# --- export and command line -----------------------------------------------------------------------------------------


def export(model: Any, tokenizer: PreTrainedTokenizerFast, folder: Path) -> None:
    """Write the folder in the format of Hugging Face, weights in bfloat16."""
    folder.mkdir(parents=True, exist_ok=True)
    model.generation_config = GenerationConfig(bos_token_id=BOS_ID, eos_token_id=EOS_ID, do_sample=False)
    model.to(torch.bfloat16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    # transformers 5 leaves out that tokenizer.json adds bos, and names a class that transformers 4 does not know.
    path = folder / "tokenizer_config.json"
    settings = json.loads(path.read_text())
    settings |= {"add_bos_token": True, "add_eos_token": False, "tokenizer_class": "PreTrainedTokenizerFast"}
    settings.pop("backend", None)
    path.write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")
    (folder / "model.safetensors").chmod(0o644)


def parse_arguments() -> argparse.Namespace:
    """Return the parsed command line."""
    parser = argparse.ArgumentParser(description="Train or check the small Mixtral checkpoint of the package.")
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--out", type=Path, metavar="FOLDER", help="train and write the checkpoint here")
    mode.add_argument("--evaluate", type=Path, metavar="FOLDER", help="recompute the numbers of this checkpoint")
    parser.add_argument("--seed", type=int, default=Recipe.seed)
    parser.add_argument("--steps", type=int, default=Recipe.steps)
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default 1); sums differ with others")
    parser.add_argument(
        "--dtype", choices=["float32", "bfloat16"], default="float32", help="arithmetic of --evaluate (default float32)"
    )
    return parser.parse_args()


def main() -> None:
    """Train and export, then evaluate what was exported; or only evaluate."""
    arguments = parse_arguments()
    torch.set_num_threads(arguments.threads)
    if arguments.evaluate:
        result = evaluate(arguments.evaluate, dtype=getattr(torch, arguments.dtype))
        print(report(result))
        record = arguments.evaluate / "training.json"
        made_from = json.loads(record.read_text())["corpus"] if record.exists() else result["corpus"]
        if made_from["sha256"] != result["corpus"]["sha256"]:
            print(f"\nnote: the checkpoint was made from the text of Python {made_from['python']}, which differs")
        return

    recipe = Recipe(seed=arguments.seed, steps=arguments.steps)
    documents = corpus()
    tokenizer = train_tokenizer([text for name, text in documents.items() if split_of(name) == "train"])
    parts = {split: encode(tokenizer, documents, split) for split in ("train", "validation")}
    print(f"{len(documents)} documents, {sum(map(len, parts['train']))} training tokens", flush=True)
    model, run = train(parts["train"], parts["validation"], recipe, log=lambda line: print(line, flush=True))
    export(model, tokenizer, arguments.out)
    result = evaluate(arguments.out)
    record = {
        **result,
        "recipe": asdict(recipe),
        **run,
        "parameters": model.num_parameters(),
        "threads": arguments.threads,
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "tokenizers": tokenizers.__version__,
        },
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(report(result))


if __name__ == "__main__":
    main()
