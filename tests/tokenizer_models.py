"""Small tokenizers of the two families that Mixtral checkpoints use, made with the `tokenizers` library."""

import json
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

from moejax.text.tokenizer import Tokenizer as LoadedTokenizer

BOS, EOS = "<s>", "</s>"
CORPUS = ["the import statement", "a list is a list", "é € 😀 日本 naïve café €5 😀😀"] * 4
WORDS = ("▁", "▁▁", "▁a", "▁the", "the", "he", "t", "h", "e", "a", "s", "▁lis", "i", "l", "é", ".", "\ufffd")


def byte_level() -> Tokenizer:
    """Byte-level BPE in the manner of GPT-2; ids 0 and 1 are BOS and EOS. Some tokens hold parts of characters."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=300,
        special_tokens=[BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS, trainer)
    return with_bos(tokenizer)


def sentencepiece(*, metaspace: bool = False) -> Tokenizer:
    """BPE with byte fallback as Llama and Mixtral have it; ids 0, 1, 2 are unknown, BOS and EOS, bytes follow.

    `metaspace` chooses the later of the two ways in which transformers writes such a tokenizer.json.
    """
    pieces = ["<unk>", BOS, EOS, *(f"<0x{byte:02X}>" for byte in range(256)), *WORDS]
    merges = [("▁", "▁"), ("▁", "a"), ("h", "e"), ("t", "he")]
    model = models.BPE(
        vocab={piece: n for n, piece in enumerate(pieces)},
        merges=merges,
        unk_token="<unk>",
        fuse_unk=True,
        byte_fallback=True,
    )
    tokenizer = Tokenizer(model)
    if metaspace:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="first", split=False)
        tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace(prepend_scheme="first")])
    else:
        tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
        tokenizer.decoder = decoders.Sequence(
            [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
        )
    tokenizer.add_special_tokens(["<unk>", BOS, EOS])
    return with_bos(tokenizer)


def with_bos(tokenizer: Tokenizer) -> Tokenizer:
    """The same tokenizer with a post-processor that puts BOS in front."""
    special = [(BOS, tokenizer.token_to_id(BOS))]
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=special)
    return tokenizer


def save(folder: Path, tokenizer: Tokenizer, **config: Any) -> Path:
    """Writes tokenizer.json and tokenizer_config.json (BOS and EOS named, unless `config` says otherwise)."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    fields = {"bos_token": BOS, "eos_token": EOS} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(fields), encoding="utf-8")
    return folder


def loaded(tokenizer: Tokenizer, **config: Any) -> LoadedTokenizer:
    """The tokenizer as it is read from a checkpoint folder."""
    with TemporaryDirectory() as folder:
        result = LoadedTokenizer.from_folder(save(Path(folder), tokenizer, **config))
    assert result is not None
    return result
