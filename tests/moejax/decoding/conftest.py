"""Models that the tests of decoding share, so that their compiled programs are shared too."""

import pytest

from tests.moejax.decoding.tiny_checkpoint import Tiny, load_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """Full attention, a byte-level tokenizer, no EOS (tests that need one set `eos_token_ids`)."""
    return load_tiny(tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="session")
def windowed(tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    """A sliding window of 8 tokens, no tokenizer."""
    return load_tiny(tmp_path_factory.mktemp("windowed"), seed=1, tokenizer=False, sliding_window=8)
