"""A tokenizer's own file in its library: what its tokens are, and the ids of a text.

It runs in a process of its own (`moejax.text.limited`): a tokenizer.json may hold regular expressions without end,
replacements that grow, and what makes its library panic.
"""

import base64
from collections.abc import Callable, Iterable
from typing import Any

# Protobuf merges what stands twice in a message: normalizer_spec (field 3) { add_dummy_prefix (field 3): false }.
_NO_PREFIX = b"\x1a\x02\x18\x00"
# What decoders are tried on besides the vocabulary; some cut more than there is.
_TRIED = (["a"], [" "], ["a\u0120a"], ["a", "<0x41>"], ["   "], ["a", " "], ["\u2581a"], ["<0xE2>", "<0x82>"])

Encode = Callable[[str], list[int]]
# content, id (None: its piece's, or the next one), keeps (the flags that tokenizer.json has for it), special, ...
AddedTokens = list[dict[str, Any]]


def prepare(setup: dict[str, Any]) -> tuple[dict[str, Any], Encode]:
    """What is in a tokenizer file, and the function that encodes a text without adding anything to it.

    The description: `ids` and `pieces` of all tokens, the `special` pieces, the `decoder` in the form of
    tokenizer.json or None, the id that stands `first` in a text or None, and what tokens are `named`.

    Raises:
      ValueError: the file is not valid, or gives a token another id than the files beside it.
    """
    if setup["kind"] == "sentencepiece":
        return _sentencepiece(setup)
    return _tokenizer_json(setup["text"], setup["added"])


def _tokenizer_json(text: str, added: AddedTokens) -> tuple[dict[str, Any], Encode]:
    import tokenizers

    backend = tokenizers.Tokenizer.from_str(text)
    backend.no_truncation()  # training leaves these in the file; a prompt is never cut or padded silently
    backend.no_padding()
    own = backend.get_added_tokens_decoder().values()
    known = {token.content for token in own}
    listed = [token for token in added if token["id"] is not None]
    backend.add_tokens([_added_token(token) for token in listed if not (token["keeps"] and token["content"] in known)])
    known |= {token["content"] for token in listed}  # a list says more of a token than its name does
    more = [token for token in added if token["id"] is None and token["content"] not in known]
    backend.add_tokens([_added_token(token) for token in more])
    for token in listed:
        if (got := backend.token_to_id(token["content"])) != token["id"]:
            raise ValueError(
                f"the token {token['content']!r} has the id {token['id']} in the files beside it, but gets {got} here"
            )
    ids = sorted(set(backend.get_vocab(with_added_tokens=True).values()))
    pieces = [backend.id_to_token(i) for i in ids]
    decoder = backend.decoder
    if decoder is not None:
        for tried in (*_TRIED, pieces, *([piece] for piece in pieces[:1000])):
            decoder.decode(tried)
    plain = backend.encode("a", add_special_tokens=False).ids
    full = backend.encode("a", add_special_tokens=True).ids
    found = {
        "ids": ids,
        "pieces": pieces,
        # What the file itself calls special, its library hides whatever is added later.
        "special": [token.content for token in (*own, *backend.get_added_tokens_decoder().values()) if token.special],
        "decoder": None if decoder is None else decoder.__getstate__().decode(),
        "first": full[0] if full and full[:1] != plain[:1] else None,
        "named": {},
    }
    return found, lambda text: backend.encode(text, add_special_tokens=False).ids


def _sentencepiece(setup: dict[str, Any]) -> tuple[dict[str, Any], Encode]:
    """As SentencePiece itself encodes each part between added and control tokens, which are no text to it."""
    from sentencepiece import SentencePieceProcessor

    model = base64.b64decode(setup["model"])
    whole = SentencePieceProcessor(model_proto=model)
    bare = SentencePieceProcessor(model_proto=model + _NO_PREFIX)
    pieces = {i: whole.id_to_piece(i) for i in range(whole.vocab_size())}
    control = [i for i in pieces if whole.is_control(i) or whole.is_unknown(i)]
    tokens = {i: {"content": pieces[i], "special": True} for i in control} | _placed(setup["added"], pieces)
    pieces |= {i: token["content"] for i, token in tokens.items()}
    prefix = setup["prefix"] if whole.encode("a") != bare.encode("a") else "never"
    named = {"bos_token": whole.bos_id(), "eos_token": whole.eos_id(), "unk_token": whole.unk_id()}
    named["pad_token"] = whole.pad_id()
    split = _splitter(tokens)

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for start, part in split(text):
            if isinstance(part, int):
                ids.append(part)
            else:
                prefixed = prefix == "always" or (prefix == "first" and start == 0)
                ids += (whole if prefixed else bare).encode(part)
        return ids

    found = {
        "ids": list(pieces),
        "pieces": list(pieces.values()),
        "special": [token["content"] for token in tokens.values() if token["special"]],
        "decoder": _sentencepiece_decoder(strips=prefix != "never"),
        "first": None,
        "named": {name: pieces[i] for name, i in named.items() if i >= 0},
    }
    return found, encode


def _placed(added: AddedTokens, pieces: dict[int, str]) -> dict[int, dict[str, Any]]:
    """Added tokens by id: their own, else that of the piece of their name, else the next."""
    ids = {piece: i for i, piece in pieces.items()}
    placed: dict[int, dict[str, Any]] = {}
    following = 1 + max((*pieces, *(token["id"] for token in added if token["id"] is not None)))
    for token in added:
        given, known = token["id"], ids.get(token["content"])
        if given is not None and known is not None and given != known:
            raise ValueError(f"the token {token['content']!r} has the id {given} beside it, but {known} here")
        place = given if given is not None else known if known is not None else following
        following += place == following
        placed[place], ids[token["content"]] = token, place
    return placed


def _splitter(tokens: dict[int, dict[str, Any]]) -> Callable[[str], Iterable[tuple[int, int | str]]]:
    """Divides a text into the ids of `tokens` in it and the text between: (start, id or text)."""
    import tokenizers

    # Whatever is between has the one token of this vocabulary.
    backend = tokenizers.Tokenizer(tokenizers.models.WordLevel({"": 0}, unk_token=""))
    backend.add_tokens([_added_token(token) for token in tokens.values()])
    own = {backend.token_to_id(token["content"]): i for i, token in tokens.items()}

    def split(text: str) -> Iterable[tuple[int, int | str]]:
        encoding = backend.encode(text, add_special_tokens=False)
        for i, (start, end) in zip(encoding.ids, encoding.offsets, strict=True):
            yield start, own[i] if i in own else text[start:end]

    return split


def _sentencepiece_decoder(*, strips: bool) -> str:
    from tokenizers import decoders

    steps = [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    return decoders.Sequence(steps + [decoders.Strip(" ", 1, 0)] * strips).__getstate__().decode()


def _added_token(token: dict[str, Any]) -> Any:
    import tokenizers

    flags = {key: token[key] for key in ("lstrip", "rstrip", "single_word", "normalized") if key in token}
    return tokenizers.AddedToken(token["content"], special=token["special"], **flags)
