"""Attention: two contractions with a softmax over the keys between them."""

from string import ascii_lowercase

from slipstream.symmetry.atoms import Layout, merge
from slipstream.symmetry.axis_rules.contraction import contract
from slipstream.symmetry.axis_rules.elementwise import align
from slipstream.symmetry.axis_rules.registry import Call, UnsupportedError, rule


@rule("scaled_dot_product_attention", signs=True)
def attention(call: Call) -> Layout:
    """Queries meet keys inside a head, the scores meet the values; heads may share keys."""
    if call["dropout_p"]:
        raise UnsupportedError("it draws random numbers")
    *batch, queries, features = call.axes("query")
    key, value = call.axes("key"), call.axes("value")
    if call["is_causal"]:
        call.pin(queries, "a causal mask orders the queries")
        call.pin(key[-2], "a causal mask orders the keys")
    letters = ascii_lowercase[: len(batch)]
    shared = letters
    if call["enable_gqa"]:
        heads, inside = call.divide(batch[-1], call["key"].shape[-3])
        batch[-1:] = [heads, inside]
        letters += "r"
    scores = contract(
        call,
        [(letters + "QF", (*batch, queries, features)), (shared + "KF", key)],
        letters + "QK",
    )
    for axis in scores:
        call.unsigned(axis)
    flat = scores if letters == shared else (*scores[:-4], merge(scores[-4:-2]), *scores[-2:])
    if call["attn_mask"] is not None:
        align(call, [flat, call.axes("attn_mask")])
    result = contract(call, [(letters + "QK", scores), (shared + "KV", value)], letters + "QV")
    return result if letters == shared else (*result[:-4], merge(result[-4:-2]), *result[-2:])
