"""What to do with two checkpoints, in one line."""

from slipstream.comparison.pair import Pair, Verdict

_ADVICE = {
    "identical": "no use: they are the same model.",
    "re-saved": "no use: they are the same model; keep the one of the wider type.",
    "snapshots of one run": "average: they are snapshots of one run.",
    "fine-tune": "port as it is: what changes the one fits the other; their average may be good.",
    "siblings": "average: they have a common parent; a fine-tune of one fits the other as it is.",
    "fine-tune or siblings": "average, or port a fine-tune of one to the other as it is.",
    "permuted": "port with matching: a permutation makes them equal, without loss.",
    "quantised": "port as it is, to the one of full precision; averaging leaves the levels.",
    "pruned": "port as it is, and set the zeros again; averaging fills them.",
    "merged": "port as it is: a fine-tune of one fits the other.",
    "independent": "port with matching; a plain average would be worse than both.",
    "different architectures": "no use: no weights correspond.",
    "cannot tell": "measure it: `slipstream landscape barrier` needs data, and decides.",
}


def advice_for(pair: Pair, verdict: Verdict) -> str:
    """Return what to do with a pair of checkpoints.

    Args:
        pair: What was measured.
        verdict: What they are to each other.

    Returns:
        A sentence.
    """
    text = _ADVICE[verdict.relation]
    if pair.names.differences and verdict.relation != "different architectures":
        text += " What only one has stays out."
    return text
