"""The names of Mixtral's weights: in Hugging Face checkpoints, in moejax, and in a converted folder. One table."""

from dataclasses import dataclass

from convert import Fused, Ignore, Rule, Slot


@dataclass(frozen=True)
class Row:
    """Hugging Face's name of a tensor, our path of it, and where it is in a converted folder: Orbax checkpoint and key.

    split_axis: the axis that tensor parallelism divides (the expert's hidden axis, the attention heads, the
    vocabulary).
    """

    hf: str
    path: str
    item: str
    key: str
    split_axis: int = 0


_LAYER = "model.layers.{layer}"
_EXPERT = "model.layers.{layer}.block_sparse_moe.experts.{expert}"
_ATTENTION, _ROUTER, _EXPERT_ITEM = (
    "layers.{layer}.attention",
    "layers.{layer}.router",
    "layers.{layer}.experts.{expert}",
)

TABLE = (
    Row("model.embed_tokens.weight", "embed.table", "embed", "table"),
    Row(f"{_LAYER}.input_layernorm.weight", "layers.{layer}.attention_norm.scale", _ATTENTION, "norm"),
    Row(f"{_LAYER}.self_attn.q_proj.weight", "layers.{layer}.attention.q", _ATTENTION, "q"),
    Row(f"{_LAYER}.self_attn.k_proj.weight", "layers.{layer}.attention.k", _ATTENTION, "k"),
    Row(f"{_LAYER}.self_attn.v_proj.weight", "layers.{layer}.attention.v", _ATTENTION, "v"),
    Row(f"{_LAYER}.self_attn.o_proj.weight", "layers.{layer}.attention.o", _ATTENTION, "o", split_axis=1),
    Row(f"{_LAYER}.post_attention_layernorm.weight", "layers.{layer}.moe_norm.scale", _ROUTER, "norm"),
    Row(f"{_LAYER}.block_sparse_moe.gate.weight", "layers.{layer}.moe.router", _ROUTER, "router"),
    Row(f"{_EXPERT}.w1.weight", "layers.{layer}.moe.experts.{expert}.gate", _EXPERT_ITEM, "gate"),
    Row(f"{_EXPERT}.w3.weight", "layers.{layer}.moe.experts.{expert}.up", _EXPERT_ITEM, "up"),
    Row(f"{_EXPERT}.w2.weight", "layers.{layer}.moe.experts.{expert}.down", _EXPERT_ITEM, "down", split_axis=1),
    Row("model.norm.weight", "final_norm.scale", "head", "norm"),
    Row("lm_head.weight", "head.table", "head", "table"),
)

# transformers 5 keeps the experts of a layer in two tensors, [E, 2F, D] (gate above up) and [E, D, F]. Their parts have
# the names of the table, and what is read is the same.
FUSED = tuple(
    row
    for block in ("mlp", "block_sparse_moe")
    for row in (
        Fused(f"{_LAYER}.{block}.experts.gate_up_proj", (f"{_EXPERT}.w1.weight", f"{_EXPERT}.w3.weight"), "expert"),
        Fused(f"{_LAYER}.{block}.experts.down_proj", (f"{_EXPERT}.w2.weight",), "expert"),
    )
)

HF_RULES = (
    *(Rule(row.hf, row.path) for row in TABLE),
    Rule(f"{_LAYER}.mlp.gate.weight", "layers.{layer}.moe.router"),  # beside fused experts
)
HF_IGNORES = (
    Ignore(f"{_LAYER}.self_attn.rotary_emb.inv_freq", "derived from rope_theta"),
    Ignore("lm_head.weight", "tied to the embedding"),  # a rule comes first where the head is a parameter of its own
)
# In a converted folder every array has our path.
PATH_RULES = tuple(Rule(row.path, row.path) for row in TABLE)
SLOTS = tuple(Slot(path=row.path, item=row.item, key=row.key, split_axis=row.split_axis) for row in TABLE)
