"""Every number of the cost model that neither a size, nor a split, nor a hardware file gives. Imports no JAX.

tests/moejax/planning/test_coefficients.py doubles one at a time, and some count of a real model or loop has to notice.
"""

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class Coefficients:
    """How often each thing is counted; docs/performance-model.md has the formulas.

    Products: flops_per_product of a multiplication and addition, once for each element of a declared weight;
    attention_products (scores, weighted sums).
    visible_share: what a token sees of the part of a prompt that is fed with it, on average.
    Reads: cached_arrays of a layer (keys, values); embedding_rows of a token.
    Exchange: all_reduce_rounds of a ring (reduce-scatter, then all-gather) and other_rounds, of G - 1 hops each;
    routing_arrays of a token that is sent with its experts (ids, weights).
    Activations, at the same time: residuals; float32_bytes; query_copies and key_copies (keys, values) in float32;
    expert_inputs in the dtype and expert_results (of each expert, their sum) in float32; logit_copies in float32.
    """

    flops_per_product: int = 2
    attention_products: int = 2
    visible_share: float = 0.5

    cached_arrays: int = 2
    embedding_rows: int = 1

    all_reduce_rounds: int = 2
    other_rounds: int = 1
    routing_arrays: int = 2

    residuals: int = 2
    float32_bytes: int = 4
    query_copies: int = 1
    key_copies: int = 2
    expert_inputs: int = 1
    expert_results: int = 2
    logit_copies: int = 2


COST = Coefficients()
