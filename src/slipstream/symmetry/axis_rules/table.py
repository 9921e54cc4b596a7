"""All rules together: which one an operator follows."""

import torch

from slipstream.symmetry.axis_rules import (  # importing a family registers its rules
    attention,
    contraction,
    creation,
    elementwise,
    joining,
    lookup,
    normalisation,
    recurrence,
    reduction,
    regrouping,
    sliding,
)
from slipstream.symmetry.axis_rules.registry import RULES, Rule

FAMILIES = (
    attention,
    contraction,
    creation,
    elementwise,
    joining,
    lookup,
    normalisation,
    recurrence,
    reduction,
    regrouping,
    sliding,
)


def find_rule(operator: torch._ops.OpOverload) -> Rule | None:
    """Return the rule of an operator, or None if there is none."""
    namespace, name = operator._schema.name.split("::")
    if namespace != "aten":
        return RULES.get(operator._schema.name)  # a user's own: "library::operator"
    overload = operator._schema.overload_name
    for base in (name, name.rstrip("_")):
        for key in (f"{base}.{overload}", base):
            if key in RULES:
                return RULES[key]
    random = torch.Tag.nondeterministic_seeded in operator.tags
    pointwise = torch.Tag.pointwise in operator.tags and not random
    return Rule(elementwise.broadcast) if pointwise else None
