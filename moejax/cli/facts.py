"""What can be known of a model before JAX starts and its weights are read, so that mistakes are told at once."""

import dataclasses
from dataclasses import dataclass

from moejax.checkpoint import Checkpoint, open_checkpoint
from moejax.families.config import ModelConfig, sequence_limit
from moejax.families.table import RANDOM, named_config
from moejax.text.tokenizer import Tokenizer, missing_tokenizer_message


@dataclass(frozen=True, kw_only=True)
class SourceFacts:
    """The fields of a `Model` of the same names, as far as `moejax.decoding.requests` checks requests with them.

    name: as the command was given it.
    source: what `moejax.load` is given: the name of random weights, or the checkpoint, which is then not opened twice.
    dtype: that the checkpoint is stored in; what the word "auto" means.
    """

    name: str
    source: str | Checkpoint
    config: ModelConfig
    tokenizer: Tokenizer | None
    no_tokenizer_reason: str | None
    max_seq_len: int
    eos_token_ids: tuple[int, ...]
    dtype: str


def read_facts(source: str, max_seq_len: int | None, chat_template: str | None = None) -> SourceFacts:
    """The facts about the model that `moejax.load(source, max_seq_len=max_seq_len)` would load.

    chat_template: in place of the checkpoint's own.

    Raises:
        ValueError: for a source or limit that it would refuse as well.
    """
    if source.startswith(RANDOM):
        given: str | Checkpoint = source
        config = named_config(source.removeprefix(RANDOM))
        tokenizer, eos_token_ids, dtype = None, (), "bfloat16"
        reason = f"{source} has random weights and no tokenizer: use --token-ids"
    else:
        given = checkpoint = dataclasses.replace(open_checkpoint(source), chat_template=chat_template)
        config, eos_token_ids, dtype = checkpoint.config, checkpoint.eos_token_ids, checkpoint.dtype
        tokenizer = checkpoint.tokenizer
        reason = None if tokenizer else missing_tokenizer_message(checkpoint.folder)
    return SourceFacts(
        name=source,
        source=given,
        config=config,
        tokenizer=tokenizer,
        no_tokenizer_reason=reason,
        max_seq_len=sequence_limit(max_seq_len, config),
        eos_token_ids=eos_token_ids,
        dtype=dtype,
    )
