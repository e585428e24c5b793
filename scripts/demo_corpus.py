"""The demo checkpoint's text: corpus, split, tokenizer, and the n-gram models that the trained model is held to.

The text is what every Python installation carries: the help topics of `pydoc_data.topics` and the docstrings of the
standard library that are longer than 200 characters.
"""

import ast
import hashlib
import json
import math
import sysconfig
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Literal

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

BOS, EOS = "<s>", "</s>"
BOS_ID, EOS_ID = 0, 1
VOCAB_SIZE = 2048
MAX_POSITIONS = 1024
MIN_DOCSTRING = 200  # characters; shorter ones are mostly a single imperative sentence
MIN_REPEAT = 80  # characters; a paragraph this long that occurred before is dropped
SKIPPED_FOLDERS = {"test", "tests", "idle_test", "site-packages", "dist-packages", "__pycache__"}
Split = Literal["train", "validation", "heldout"]
Documents = list[list[int]]


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    """Yield (qualified name, cleaned docstring) of a module and of every class and function in it."""
    if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
        text = ast.get_docstring(node)
        if text and len(text) > MIN_DOCSTRING:
            yield name, text
    for child in ast.iter_child_nodes(node):
        child_name = getattr(child, "name", None)
        named = isinstance(child, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef)
        yield from _docstrings(child, f"{name}.{child_name}" if named else name)


def _without_repeats(documents: dict[str, str]) -> dict[str, str]:
    """Drop each long paragraph that an earlier document already had, and documents that become too short.

    Help topics share whole sections and copied docstrings are common; without this a held-out document could be read
    word for word in training.
    """
    seen: set[str] = set()
    kept: dict[str, str] = {}
    for name, text in documents.items():
        paragraphs = []
        for paragraph in text.split("\n\n"):
            key = " ".join(paragraph.split())
            if key in seen:
                continue
            if len(key) >= MIN_REPEAT:
                seen.add(key)
            paragraphs.append(paragraph)
        text = "\n\n".join(paragraphs).strip()
        if len(text) > MIN_DOCSTRING:
            kept[name] = text
    return kept


def corpus() -> dict[str, str]:
    """Return {name: text} of the running Python's help topics and long docstrings, in a fixed order.

    Sources are parsed, never imported. Files that do not parse (bad on purpose, or for another version) are left out.
    """
    from pydoc_data import topics

    documents = {f"topic:{name}": text.strip() for name, text in sorted(topics.topics.items())}
    root = Path(sysconfig.get_path("stdlib"))
    files = {path.relative_to(root).as_posix(): path for path in root.rglob("*.py")}
    for relative in sorted(files):
        if SKIPPED_FOLDERS.intersection(relative.split("/")):
            continue
        try:
            tree = ast.parse(files[relative].read_bytes())
        except SyntaxError:
            continue
        module = relative.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        documents.update(_docstrings(tree, module))
    return _without_repeats(documents)


def corpus_digest(documents: dict[str, str]) -> str:
    """Return the SHA-256 of the names and texts, which tells one Python's text from another's."""
    return hashlib.sha256(json.dumps(documents).encode()).hexdigest()


def split_of(name: str) -> Split:
    """Assign a document to a split by the hash of its name alone, so that other documents never move it."""
    bucket = int(hashlib.sha256(name.encode()).hexdigest(), 16) % 20
    return "heldout" if bucket == 0 else "validation" if bucket == 1 else "train"


# --- tokenizer -------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE whose ids 0 and 1 are bos and eos, and which puts bos before every encoded text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B", special_tokens=[(BOS, BOS_ID)]
    )
    if tokenizer.get_vocab_size() != VOCAB_SIZE:
        raise ValueError(f"got {tokenizer.get_vocab_size()} entries, expected {VOCAB_SIZE}: the text is too short")
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    )


def encode(tokenizer: Any, documents: dict[str, str], split: Split) -> Documents:
    """Encode one split as a list of documents, each of them bos, text, eos."""
    texts = [text for name, text in documents.items() if split_of(name) == split]
    return [[*ids, EOS_ID] for ids in tokenizer(texts, verbose=False)["input_ids"]]


# --- n-gram baseline -------------------------------------------------------------------------------------------------


def ngram_loss(train: Documents, test: Documents, *, order: int, discount: float) -> float:
    """Return nats per token of an interpolated n-gram model with absolute discounting, on every token after bos.

    Each order is mixed with the one below it, down to the uniform distribution (Chen and Goodman 1999, section 2.7).
    """
    counts = [defaultdict(Counter) for _ in range(order)]
    for ids in train:
        for i in range(1, len(ids)):
            for n in range(min(order, i + 1)):
                counts[n][tuple(ids[i - n : i])][ids[i]] += 1
    totals = [{context: sum(seen.values()) for context, seen in table.items()} for table in counts]

    loss, tokens = 0.0, 0
    for ids in test:
        for i in range(1, len(ids)):
            p = 1 / VOCAB_SIZE
            for n in range(min(order, i + 1)):
                context = tuple(ids[i - n : i])
                if context not in totals[n]:
                    break
                seen, total = counts[n][context], totals[n][context]
                p = max(seen[ids[i]] - discount, 0) / total + discount * len(seen) / total * p
            loss, tokens = loss - math.log(p), tokens + 1
    return loss / tokens


def tuned_ngram_loss(train: Documents, validation: Documents, test: Documents, *, order: int) -> float:
    """Return `ngram_loss` on test with the discount that is best on validation."""
    discounts = [0.5, 0.6, 0.7, 0.75, 0.8, 0.85, 0.9, 0.95]
    best = min(discounts, key=lambda d: ngram_loss(train, validation, order=order, discount=d))
    return ngram_loss(train, test, order=order, discount=best)


def bigram_loss(train: Documents, validation: Documents, test: Documents) -> float:
    """Return nats per token on test of the interpolated bigram model, the baseline that the model is held to."""
    return tuned_ngram_loss(train, validation, test, order=2)
