"""Text of a sequence that arrives token by token: equal to the text of the whole, however it is divided."""

import os.path
from collections.abc import Sequence

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from tokenizers.pre_tokenizers import ByteLevel

from moejax.text.stops import StopMatcher
from moejax.text.stream import MAX_PIECES, Detokenizer, TextStream
from moejax.text.tokenizer import Tokenizer
from tests.messages import refuses
from tests.tokenizer_models import byte_level, loaded, sentencepiece

QUICK = settings(max_examples=100, deadline=None)
TOKENIZERS = {
    "byte-level": loaded(byte_level()),
    "sentencepiece": loaded(sentencepiece()),
    "metaspace": loaded(sentencepiece(metaspace=True)),
}
WORDS = ("é", "€", "😀", " ", "  ", "the", " a", "\n", "日本", "\ufffd", "<s>", "</s>", "list")
# Every unfinished character, whatever its first byte, is completed by at least one of these.
COMPLETIONS = [bytes([first, *([0x80] * more)]) for first in (0x80, 0x8F, 0x90, 0x9F, 0xA0, 0xBF) for more in range(3)]
# chr(0x80) to chr(0xFF) end in each of the bytes 0x80 to 0xBF.
BYTE_LETTERS = {
    character.encode()[-1]: ByteLevel(add_prefix_space=False, use_regex=False).pre_tokenize_str(character)[0][0][-1]
    for character in map(chr, range(0x100))
}


@pytest.fixture(scope="module", params=TOKENIZERS)
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return TOKENIZERS[request.param]


def token_lists(tokenizer: Tokenizer, max_size: int = 40) -> st.SearchStrategy[list[int]]:
    """Text, parts of characters, any single token and ids without a token, in any order."""
    whole = st.sampled_from(WORDS).map(tokenizer.encode)
    without_end = whole.map(lambda ids: ids[:-1])
    without_start = whole.map(lambda ids: ids[2:])
    anything = st.integers(0, tokenizer.vocab_size + 2).map(lambda i: [i])
    parts = st.lists(whole | without_end | without_start | anything, max_size=max_size)
    return parts.map(lambda lists: [i for ids in lists for i in ids])


def byte_ids(tokenizer: Tokenizer, data: bytes) -> list[int]:
    """One token per byte, each 0x80 to 0xBF."""
    fallback = tokenizer.byte_form == "fallback"
    ids = [tokenizer.ids.get(f"<0x{byte:02X}>" if fallback else BYTE_LETTERS[byte]) for byte in data]
    return [i for i in ids if i is not None]


def settled_length(tokenizer: Tokenizer, ids: Sequence[int], skip: bool) -> int:
    """How much of the text of `ids` no continuation can change, found by trying continuations."""
    endings = [[], *(byte_ids(tokenizer, completion) for completion in COMPLETIONS)]
    texts = [tokenizer.decode([*ids, *ending], skip_special_tokens=skip) for ending in endings]
    return len(os.path.commonprefix([texts[0], *texts]))


# --- detokenizer ---


@QUICK
@given(data=st.data(), skip=st.booleans())
def test_pushed_texts_joined_equal_one_shot(tokenizer: Tokenizer, data: st.DataObject, skip: bool) -> None:
    prompt, ids = data.draw(token_lists(tokenizer, max_size=12)), data.draw(token_lists(tokenizer))
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=skip)
    start = settled_length(tokenizer, prompt, skip)
    text = ""
    for count, token_id in enumerate(ids, start=1):
        text += detokenizer.push(token_id)
        # Neither late nor early: what no continuation can change, and nothing else.
        assert len(text) == settled_length(tokenizer, [*prompt, *ids[:count]], skip) - start
    text += detokenizer.flush()
    assert text == tokenizer.decode([*prompt, *ids], skip_special_tokens=skip)[start:]
    assert detokenizer.flush() == ""


def test_space_between_prompt_and_output_is_kept(tokenizer: Tokenizer) -> None:
    prompt, ids = tokenizer.encode("the list"), tokenizer.encode("the list a")
    assert ids[: len(prompt)] == prompt
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=True)
    assert "".join(map(detokenizer.push, ids[len(prompt) :])) == " a"


def test_special_tokens_at_the_end_of_the_prompt_hide_no_text(tokenizer: Tokenizer) -> None:
    """The context is the last pieces with text: with `</s>` alone the space would go."""
    prompt = [*tokenizer.encode("list"), *[tokenizer.ids.get("</s>")] * 50]
    ids = tokenizer.encode("the a")[len(tokenizer.encode("the")) :]
    detokenizer = Detokenizer(tokenizer, prompt, skip_special_tokens=True)
    assert "".join(map(detokenizer.push, ids)) == " a"


def test_characters_come_whole_and_at_once(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("a"), skip_special_tokens=True)
    texts = [detokenizer.push(i) for i in tokenizer.encode("a日😀é\ufffda")[len(tokenizer.encode("a")) :]]
    assert [text for text in texts if text] == ["日", "😀", "é", "\ufffd", "a"]


def test_character_begun_by_the_prompt_belongs_to_the_output(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("a日")
    detokenizer = Detokenizer(tokenizer, ids[:-1], skip_special_tokens=True)
    assert detokenizer.push(ids[-1]) == "日"


def test_invalid_bytes_are_not_held(tokenizer: Tokenizer) -> None:
    detokenizer = Detokenizer(tokenizer, tokenizer.encode("a"), skip_special_tokens=True)
    assert [detokenizer.push(i) for i in byte_ids(tokenizer, b"\x80" * 100)] == ["\ufffd"] * 100
    assert detokenizer.flush() == ""


def test_cost_of_a_token_does_not_grow(tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch) -> None:
    joined: list[int] = []
    join = Tokenizer.join
    monkeypatch.setattr(Tokenizer, "join", lambda self, pieces: (joined.append(len(pieces)), join(self, pieces))[1])
    half, space = tokenizer.encode("日")[-2], tokenizer.encode("the a")[-2]
    detokenizer = Detokenizer(tokenizer, [half, space] * 500, skip_special_tokens=True)
    for token_id in [half] * 300 + [space] * 300 + byte_ids(tokenizer, b"\x80" * 300):
        detokenizer.push(token_id)
    assert max(joined) <= MAX_PIECES + 1
    assert len(joined) < 1000


# --- stop strings ---


def first_stop(text: str, stops: tuple[str, ...], include: bool) -> tuple[str, str | None]:
    """By definition: the first end of a stop string; of those that end there, the longest."""
    for end in range(1, len(text) + 1):
        if found := [stop for stop in stops if text[:end].endswith(stop)]:
            stop = max(found, key=len)
            return text[: end if include else end - len(stop)], stop
    return text, None


@settings(max_examples=300, deadline=None)
@given(
    parts=st.lists(st.text("ab€", max_size=4), max_size=10),
    stops=st.lists(st.text("ab€", min_size=1, max_size=5), max_size=4),
    include=st.booleans(),
)
@example(parts=["aa", "ab"], stops=["aab"], include=False)  # the match begins inside a match that failed
@example(parts=["ab€aba", "b€ab€b"], stops=["ab€ab€b"], include=False)
def test_stop_does_not_depend_on_the_division(parts: list[str], stops: list[str], include: bool) -> None:
    matcher = StopMatcher(tuple(stops), include=include)
    released, seen, stop = "", "", None
    for part in parts:
        text, stop = matcher.push(part)
        released, seen = released + text, seen + part
        if stop is None:  # what may begin a stop string is held back, and nothing else
            held = max((n for string in stops for n in range(len(string)) if seen.endswith(string[:n])), default=0)
            assert released == seen[: len(seen) - held]
    released += matcher.flush()
    assert (released, stop) == first_stop("".join(parts), tuple(stops), include)


@pytest.mark.parametrize(
    ("stops", "include", "expected"),
    [
        (("cd",), False, ("ab", "cd")),
        (("cd",), True, ("abcd", "cd")),
        (("bcde", "cd"), False, ("ab", "cd")),  # the earlier end, though the other begins earlier
        (("d", "bcd", "cd"), False, ("a", "bcd")),  # one end: the longest
        (("f", "g"), False, ("abcde", None)),
        ((), False, ("abcde", None)),
    ],
)
def test_which_stop(stops: tuple[str, ...], include: bool, expected: tuple[str, str | None]) -> None:
    for parts in (["abcde"], list("abcde"), ["abc", "de"]):
        matcher = StopMatcher(stops, include=include)
        pushed = [matcher.push(part) for part in parts]
        assert ("".join(text for text, _ in pushed) + matcher.flush(), pushed[-1][1]) == expected


def test_stop_that_begins_inside_one_that_was_let_pass() -> None:
    matcher = StopMatcher(("aa",), include=False)
    assert matcher.push("baa", search=False) == ("ba", None)
    assert matcher.push("a") == ("", "aa")


def test_empty_stop_string() -> None:
    with refuses(ValueError, "('a', '')"):
        StopMatcher(("a", ""), include=False)


def test_special_tokens_that_are_not_shown_are_searched_as_wholes() -> None:
    for stop, expected in {
        "b</s>": ("a", "b</s>"),
        "</s>": ("ab", "</s>"),
        "</s>c": ("ab", "</s>c"),
        "bc": ("a", "bc"),  # as it is read
        "s": ("abcd", None),
        "b<": ("abcd", None),
        ">c": ("abcd", None),
    }.items():
        matcher = StopMatcher((stop,), include=False)
        pushed = [matcher.push(text, shown=text != "</s>") for text in ("ab", "</s>", "cd")]
        assert ("".join(text for text, _ in pushed) + matcher.flush(), pushed[-1][1]) == expected, stop
    matcher = StopMatcher(("b</s>c",), include=True)
    assert [matcher.push("ab"), matcher.push("</s>", shown=False), matcher.push("c")][-1] == ("bc", "b</s>c")


# --- both ---


def streamed(
    tokenizer: Tokenizer, prompt: list[int], ids: list[int], stops: tuple[str, ...], include: bool, min_tokens: int = 0
) -> tuple[str, str | None]:
    stream = TextStream(tokenizer, prompt, stops=stops, include_stop=include)
    text = ""
    for count, token_id in enumerate(ids, start=1):
        delta = stream.push(token_id, check_stop=count > min_tokens)
        text += delta.text
        if delta.stop is not None:
            assert stream.finish() == ""
            return text, delta.stop
    return text + stream.finish(), None


@pytest.mark.parametrize("include", [False, True])
def test_every_stop_string_of_a_text(tokenizer: Tokenizer, include: bool) -> None:
    """Each substring of up to 4 characters, with every character cut into its tokens."""
    text = "the €5 日本 😀é list"
    prompt, ids = tokenizer.encode("a."), tokenizer.encode(f"a.{text}")
    ids = ids[len(prompt) :]
    assert streamed(tokenizer, prompt, ids, (), include) == (text, None)
    for start in range(len(text)):
        for end in range(start + 1, min(start + 4, len(text)) + 1):
            stops = (text[start:end],)
            assert streamed(tokenizer, prompt, ids, stops, include) == first_stop(text, stops, include)


@QUICK
@given(data=st.data(), include=st.booleans(), min_tokens=st.integers(0, 10))
def test_stream_equals_one_shot_text_cut_at_its_stop(
    tokenizer: Tokenizer, data: st.DataObject, include: bool, min_tokens: int
) -> None:
    prompt, ids = data.draw(token_lists(tokenizer, max_size=4)), data.draw(token_lists(tokenizer, max_size=20))
    start = settled_length(tokenizer, prompt, True)
    text = tokenizer.decode([*prompt, *ids])[start:]
    searchable = settled_length(tokenizer, [*prompt, *ids], True) - start
    places = st.tuples(st.integers(0, max(0, len(text) - 1)), st.integers(1, 4))
    stops = tuple(text[a : a + n] or "x" for a, n in data.draw(st.lists(places, max_size=3)))
    unchecked = settled_length(tokenizer, [*prompt, *ids[:min_tokens]], True) - start
    # A stop string counts if it ends behind the unchecked text, wherever it begins.
    ends = [end for end in range(unchecked + 1, searchable + 1) if any(text[:end].endswith(stop) for stop in stops)]
    expected: tuple[str, str | None] = (text, None)
    if ends:
        stop = max((stop for stop in stops if text[: ends[0]].endswith(stop)), key=len)
        expected = (text[: ends[0] if include else ends[0] - len(stop)], stop)
    assert streamed(tokenizer, prompt, ids, stops, include, min_tokens) == expected


def test_final_eos_has_no_text(tokenizer: Tokenizer) -> None:
    prompt = tokenizer.encode("the")
    ids = [*tokenizer.encode("the a")[len(prompt) :], tokenizer.ids.get("</s>")]
    assert streamed(tokenizer, prompt, ids, (), False) == (" a", None)
    shown = TextStream(tokenizer, prompt, skip_special_tokens=False)
    assert "".join(shown.push(i).text for i in ids) + shown.finish() == " a</s>"


@pytest.mark.parametrize("skip", [True, False])
@pytest.mark.parametrize(
    ("stop", "expected"), [("</s>", " a list"), ("list</s>", " a "), ("</s> a", " a list"), ("a</s>", None), ("/s", "")]
)
def test_stop_with_a_special_token(tokenizer: Tokenizer, stop: str, expected: str | None, skip: bool) -> None:
    """Whether the text shows it or not."""
    eos, prompt = tokenizer.ids["</s>"], tokenizer.encode("the")
    (a,) = tokenizer.encode("the a")[len(prompt) :][:1]
    ids = [*tokenizer.encode("the a list")[len(prompt) :], eos, a]
    stream = TextStream(tokenizer, prompt, stops=(stop,), skip_special_tokens=skip)
    deltas = [stream.push(i) for i in ids]
    text = "".join(delta.text for delta in deltas) + stream.finish()
    if expected == "":  # part of a token: found where the token is shown
        assert (text, deltas[-1].stop) == ((" a list a", None) if skip else (" a list<", "/s"))
    elif expected is None:
        assert deltas[-1].stop is None
    else:
        assert (text, deltas[-1].stop) == (expected, stop)


@pytest.mark.parametrize("shown", [True, False])
def test_last_token_completes_a_stop_string(tokenizer: Tokenizer, shown: bool) -> None:
    prompt = tokenizer.encode("the")
    stream = TextStream(tokenizer, prompt, stops=("ist</s>",), skip_special_tokens=False)
    text = "".join(stream.push(i).text for i in tokenizer.encode("the a list")[len(prompt) :])
    last = stream.push_last(tokenizer.ids["</s>"], shown=shown)
    assert (text + last.text + stream.finish(), last.stop) == (" a l", "ist</s>")


def test_last_token_with_a_text_of_its_own_is_the_stop(tokenizer: Tokenizer) -> None:
    (a,) = tokenizer.encode("the a")[len(tokenizer.encode("the")) :]
    for shown, expected in ((True, " a"), (False, "")):
        stream = TextStream(tokenizer, tokenizer.encode("the"), stops=("a",))
        assert stream.push_last(a, shown=shown).stop is None
        stream = TextStream(tokenizer, tokenizer.encode("the"), stops=("a",))
        assert stream.push_last(a, shown=shown).text + stream.finish() == expected


def test_nothing_comes_after_a_stop(tokenizer: Tokenizer) -> None:
    stream = TextStream(tokenizer, tokenizer.encode("a"), stops=("t",))
    deltas = [stream.push(i) for i in tokenizer.encode("list the list")]
    assert "".join(delta.text for delta in deltas).strip() == "lis"
    assert [delta.stop for delta in deltas if delta.stop is not None][0] == "t"
    assert deltas[-1].stop == "t" and deltas[-1].text == ""


def test_model_without_a_tokenizer() -> None:
    stream = TextStream(None, [1, 2])
    assert stream.push(3).text == "" and stream.push(3).stop is None and stream.finish() == ""
