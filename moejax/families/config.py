"""What a Mixtral model is: its sizes, read from either spelling of Hugging Face's config.json or named.

Imports no JAX. The letters in brackets are the dimension key used in shapes everywhere else.
"""

import dataclasses
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Sizes and constants of a Mixtral-family model.

    Raises:
        ValueError: when the sizes cannot belong to one model.
    """

    vocab_size: int  # V
    embed_dim: int  # D
    num_layers: int  # L
    num_heads: int  # N, query heads
    num_kv_heads: int  # K
    head_dim: int  # H
    num_experts: int  # E
    experts_per_token: int  # A
    expert_dim: int  # F
    max_position_embeddings: int
    rope_theta: float = 1e6
    norm_eps: float = 1e-5
    sliding_window: int | None = None  # tokens a query sees, itself included; None: all of them
    tie_embeddings: bool = False

    def __post_init__(self) -> None:
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if problem := _problem(values, {name: name for name in values}):
            raise ValueError(f"config: {problem}")
        if self.sliding_window is not None and self.sliding_window >= self.max_position_embeddings:
            object.__setattr__(self, "sliding_window", None)  # it hides nothing

    @property
    def num_expert_parameters(self) -> int:
        """Parameters of one expert of one layer."""
        return 3 * self.embed_dim * self.expert_dim

    @property
    def num_shared_parameters(self) -> int:
        """Parameters that every token uses: embeddings, attention, norms, routers, head."""
        heads = 2 * (self.num_heads + self.num_kv_heads) * self.head_dim
        layer = self.embed_dim * (heads + self.num_experts + 2)
        return (
            self.vocab_size * self.embed_dim * (1 if self.tie_embeddings else 2)
            + self.num_layers * layer
            + (self.embed_dim)
        )

    @property
    def num_parameters(self) -> int:
        """Parameters in all."""
        return self.num_shared_parameters + self.num_layers * self.num_experts * self.num_expert_parameters

    @property
    def num_active_parameters(self) -> int:
        """Parameters that one token uses."""
        return self.num_shared_parameters + self.num_layers * self.experts_per_token * self.num_expert_parameters

    @property
    def cache_elements_per_token(self) -> int:
        """Elements of the KV cache that one token takes, over all layers."""
        return 2 * self.num_layers * self.num_kv_heads * self.head_dim


def _problem(values: Mapping[str, Any], names: Mapping[str, str]) -> str | None:
    """Why `values` of ModelConfig's fields belong to no model, calling the fields what their reader does; else None."""
    for field in dataclasses.fields(ModelConfig):
        if field.type is int and not _is_positive_int(value := values[field.name]):
            return f"{names[field.name]} must be a positive whole number, got {value!r}"
    heads, kv_heads = values["num_heads"], values["num_kv_heads"]
    if heads % kv_heads:
        return f"{names['num_heads']} must be a multiple of {names['num_kv_heads']}, got {heads} and {kv_heads}"
    if values["head_dim"] % 2:
        return f"{names['head_dim']} must be even for rotary embeddings, got {values['head_dim']}"
    if values["experts_per_token"] > values["num_experts"]:
        return (
            f"{names['experts_per_token']} must be at most {names['num_experts']}, got {values['experts_per_token']} "
            f"and {values['num_experts']}"
        )
    if (window := values["sliding_window"]) is not None and not _is_positive_int(window):
        return f"{names['sliding_window']} must be null or a positive number, got {window!r}"
    if not isinstance(tied := values["tie_embeddings"], bool):
        return f"{names['tie_embeddings']} must be true or false, got {tied!r}"
    for name in ("rope_theta", "norm_eps"):
        value = values[name]
        if not isinstance(value, (int, float)) or isinstance(value, bool) or not 0 < value < 1e30:
            return f"{names[name]} must be a positive number, got {value!r:.80}"
    if values["max_position_embeddings"] >= 2**31:
        return f"{names['max_position_embeddings']} must be below 2^31, got {values['max_position_embeddings']}"
    return None


def _is_positive_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


NAMED_CONFIGS: Mapping[str, ModelConfig] = {
    # https://huggingface.co/mistralai/Mixtral-8x7B-v0.1/blob/main/config.json
    "mixtral-8x7b": ModelConfig(
        vocab_size=32000,
        embed_dim=4096,
        num_layers=32,
        num_heads=32,
        num_kv_heads=8,
        head_dim=128,
        num_experts=8,
        experts_per_token=2,
        expert_dim=14336,
        max_position_embeddings=32768,
    ),
    # https://huggingface.co/mistralai/Mixtral-8x22B-v0.1/blob/main/config.json
    "mixtral-8x22b": ModelConfig(
        vocab_size=32000,
        embed_dim=6144,
        num_layers=56,
        num_heads=48,
        num_kv_heads=8,
        head_dim=128,
        num_experts=8,
        experts_per_token=2,
        expert_dim=16384,
        max_position_embeddings=65536,
    ),
    # Mixtrals of a size for a CPU, called by their parameters: what benchmarks and quick trials of a split run.
    "186m": ModelConfig(
        vocab_size=8192,
        embed_dim=512,
        num_layers=8,
        num_heads=8,
        num_kv_heads=4,
        head_dim=64,
        num_experts=8,
        experts_per_token=2,
        expert_dim=1792,
        max_position_embeddings=4096,
    ),
    "742m": ModelConfig(
        vocab_size=8192,
        embed_dim=1024,
        num_layers=8,
        num_heads=16,
        num_kv_heads=4,
        head_dim=64,
        num_experts=8,
        experts_per_token=2,
        expert_dim=3584,
        max_position_embeddings=4096,
    ),
}


def named_config(name: str) -> ModelConfig:
    """The configuration called `name`, or the one in the config.json that `name` is the path of.

    Raises:
        ValueError: for an unknown name, listing the known ones.
    """
    if name in NAMED_CONFIGS:
        return NAMED_CONFIGS[name]
    if name.endswith(".json"):
        return from_hf(read_config_json(Path(name)), name)
    raise ValueError(
        f"unknown model {name!r}: the known names are {', '.join(NAMED_CONFIGS)}, or the path of a config.json"
        f"{did_you_mean(name, NAMED_CONFIGS)}"
    )


def did_you_mean(name: str, known: Iterable[str]) -> str:
    """The end of a message about an unknown model: `; did you mean 'mixtral-8x7b'?`, or nothing.

    Of an id as Hugging Face has it (mistralai/Mixtral-8x7B-Instruct-v0.1) the owner does not count, nor what follows.
    """
    last, known = name.rstrip("/").rpartition("/")[2].lower(), list(known)
    near = [one for one in known if last.startswith(one)] or get_close_matches(last, known, n=1)
    return f"; did you mean {near[0]!r}?" if near else ""


def sequence_limit(max_seq_len: int | None, config: ModelConfig) -> int:
    """Most tokens of prompt and output together: `max_seq_len`, or None for as many as the model has positions.

    Raises:
        ValueError: for a limit that leaves no room, or is more than the model has.
    """
    most = config.max_position_embeddings
    if max_seq_len is None:
        return most
    if not isinstance(max_seq_len, int) or isinstance(max_seq_len, bool) or not 2 <= max_seq_len <= most:
        raise ValueError(
            f"max_seq_len must be from 2 to {most} (the model's max_position_embeddings), got {max_seq_len!r}"
        )
    return max_seq_len


def read_config_json(path: Path) -> dict[str, Any]:
    """The object in a config.json.

    Raises:
        ValueError: when the file is missing or does not hold a JSON object.
    """
    if path.is_symlink() and not path.exists():
        raise ValueError(f"{path}: is a link to {path.readlink()}, where there is no file; download it again")
    if not path.is_file():
        raise ValueError(f"{path}: there is no such file; a checkpoint folder holds a config.json")
    try:
        raw = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=_without_duplicates)
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror}); check its permissions") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path}: not valid JSON ({error}); download the file again") from error
    if not isinstance(raw, dict):
        raise ValueError(f"{path}: expected a JSON object, got {type(raw).__name__}")
    return raw


# Keys of config.json that do not change what the model computes when it decodes.
_HARMLESS_KEYS = frozenset(
    """architectures attention_dropout auto_map bos_token_id chunk_size_feed_forward dtype eos_token_id id2label
    initializer_range is_encoder_decoder label2id model_type output_attentions output_hidden_states
    output_router_logits pad_token_id pretraining_tp problem_type return_dict router_aux_loss_coef
    router_jitter_noise torch_dtype transformers_version unk_token_id use_cache""".split()
)
# Our fields -> their keys in config.json: those that must be there, and those that have a default.
_REQUIRED: Mapping[str, str] = {
    "vocab_size": "vocab_size",
    "embed_dim": "hidden_size",
    "expert_dim": "intermediate_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_experts": "num_local_experts",
    "experts_per_token": "num_experts_per_tok",
}
_OPTIONAL: Mapping[str, str] = {
    "num_kv_heads": "num_key_value_heads",
    "head_dim": "head_dim",
    "max_position_embeddings": "max_position_embeddings",
    "rope_theta": "rope_theta",
    "norm_eps": "rms_norm_eps",
    "sliding_window": "sliding_window",
    "tie_embeddings": "tie_word_embeddings",
}


def from_hf(raw: Mapping[str, Any], path: Path | str = "config.json") -> ModelConfig:
    """Reads a Hugging Face config.json, v4 (`rope_theta`, `torch_dtype`) or v5 (`rope_parameters`, `dtype`).

    Absent optional keys take the defaults of transformers' MixtralConfig. `path` is the file that messages name.

    Raises:
        ValueError: for another model family, a missing or impossible size, and, by name, any feature that would
            change the numbers and is not implemented.
    """
    try:
        return ModelConfig(**_fields(dict(raw)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _fields(raw: dict[str, Any]) -> dict[str, Any]:
    """ModelConfig's fields, checked under the names that config.json has for them."""
    if raw.get("model_type") != "mixtral":
        raise ValueError(f"model_type is {raw.get('model_type')!r}; moejax decodes 'mixtral' models only")
    if missing := [key for key in _REQUIRED.values() if raw.get(key) is None]:
        raise ValueError(f"missing {', '.join(missing)}")
    _refuse_unsupported(raw)
    names = {**_REQUIRED, **_OPTIONAL}
    fields = {
        "rope_theta": _rope_theta(raw),
        **{field: raw.pop(key) for field, key in _REQUIRED.items()},
        "max_position_embeddings": raw.pop("max_position_embeddings", 4096 * 32),
        "norm_eps": raw.pop("rms_norm_eps", 1e-5),
        "sliding_window": raw.pop("sliding_window", None),
        "tie_embeddings": False if (tied := raw.pop("tie_word_embeddings", None)) is None else tied,
    }
    if "num_key_value_heads" not in raw:
        names["num_kv_heads"] = "the default of num_key_value_heads"
    kv_heads = raw.pop("num_key_value_heads", 8)  # transformers: null means as many as query heads
    fields["num_kv_heads"] = fields["num_heads"] if kv_heads is None else kv_heads
    fields["head_dim"] = raw.pop("head_dim", None)
    if fields["head_dim"] is None:
        names["head_dim"] = "head_dim (by default hidden_size / num_attention_heads)"
        fields["head_dim"] = _default_head_dim(fields["embed_dim"], fields["num_heads"])
    if problem := _problem(fields, names):
        raise ValueError(problem)
    unknown = [key for key, value in raw.items() if value and not _is_harmless(key)]
    if unknown:
        raise ValueError(
            f"{unknown[0]}={raw[unknown[0]]!r} is not a key moejax knows, so it may change the numbers; "
            "remove it if it does not"
        )
    return fields


def _without_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        keys = [key for key, _ in pairs]
        raise ValueError(f"the key {next(key for key in keys if keys.count(key) > 1)!r} is there twice")
    return found


def _is_harmless(key: str) -> bool:
    return key in _HARMLESS_KEYS or key.startswith("_") or key.endswith("_version")


def _default_head_dim(embed_dim: Any, num_heads: Any) -> int:
    """D / N; where those are no positive numbers, any number, since `ModelConfig` refuses them by name."""
    sound = all(type(value) is int and value > 0 for value in (embed_dim, num_heads))
    return embed_dim // num_heads if sound else 2


def _refuse_unsupported(raw: dict[str, Any]) -> None:
    architectures = raw.get("architectures") or ["MixtralForCausalLM"]
    if not isinstance(architectures, list) or "MixtralForCausalLM" not in architectures:
        raise ValueError(f"architectures {architectures} is not supported; expected MixtralForCausalLM")
    activation = raw.pop("hidden_act", "silu")
    if activation not in ("silu", "swish"):
        raise ValueError(f"hidden_act {activation!r} is not supported; moejax computes silu")
    if raw.get("quantization_config"):
        method = raw["quantization_config"]
        method = method.get("quant_method", method) if isinstance(method, dict) else method
        raise ValueError(
            f"quantization_config ({method}) is not supported; use the unquantised bf16/f16/f32 checkpoint"
        )
    for key in ("attention_bias", "mlp_bias", "use_qk_norm"):
        if raw.get(key):
            raise ValueError(f"{key}={raw[key]!r} is not supported")


def _rope_theta(raw: dict[str, Any]) -> float:
    """Takes the rotary base out of either spelling; refuses every scaling of it."""
    parameters = raw.pop("rope_parameters", None) or {}
    scaling = raw.pop("rope_scaling", None) or {}
    for key, value in (("rope_parameters", parameters), ("rope_scaling", scaling)):
        if not isinstance(value, dict):
            raise ValueError(f"{key} must be an object, got {value!r}")
        kind = value.get("rope_type", value.get("type", "default"))
        rest = sorted(set(value) - {"rope_theta", "rope_type", "type"})
        if kind != "default" or rest:
            what = f"rope type {kind!r}" if kind != "default" else f"{rest[0]}={value[rest[0]]!r}"
            raise ValueError(f"{key} asks for {what}, which is not supported; moejax has 'default' rope")
    theta = raw.pop("rope_theta", None)
    given = [value for value in (theta, parameters.get("rope_theta")) if value is not None]
    if len(given) == 2 and given[0] != given[1]:
        raise ValueError(f"rope_theta is {given[0]!r} and also {given[1]!r} in rope_parameters; keep one")
    return given[0] if given else 1e6
