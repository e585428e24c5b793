"""What can be known of a model before JAX starts and its weights are read, so that mistakes are told at once."""

from dataclasses import dataclass

from moejax.checkpoint import open_checkpoint
from moejax.cli.options import RANDOM
from moejax.families.config import ModelConfig, named_config, sequence_limit
from moejax.text.tokenizer import Tokenizer, missing_tokenizer_message


@dataclass(frozen=True, kw_only=True)
class Facts:
    """The fields of a `Model` of the same names, as far as `moejax.decoding.requests` checks requests with them."""

    config: ModelConfig
    tokenizer: Tokenizer | None
    no_tokenizer_reason: str | None
    max_seq_len: int
    eos_token_ids: tuple[int, ...]
    dtype: str  # that the checkpoint is stored in; what the word "auto" means


def read_facts(source: str, max_seq_len: int | None) -> Facts:
    """The facts about the model that `moejax.load(source, max_seq_len=max_seq_len)` would load.

    Raises:
        ValueError: for a source or limit that it would refuse as well.
    """
    if source.startswith(RANDOM):
        config = named_config(source.removeprefix(RANDOM))
        tokenizer, eos_token_ids, dtype = None, (), "bfloat16"
        reason = f"{source} has random weights and no tokenizer: use --token-ids"
    else:
        checkpoint = open_checkpoint(source)
        config, eos_token_ids, dtype = checkpoint.config, checkpoint.eos_token_ids, checkpoint.dtype
        tokenizer = Tokenizer.from_folder(checkpoint.folder)
        reason = None if tokenizer else missing_tokenizer_message(checkpoint.folder)
    return Facts(
        config=config,
        tokenizer=tokenizer,
        no_tokenizer_reason=reason,
        max_seq_len=sequence_limit(max_seq_len, config),
        eos_token_ids=eos_token_ids,
        dtype=dtype,
    )
