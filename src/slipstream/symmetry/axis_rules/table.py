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
    """Return the rule of an operator, or None if there is none.

    What writes to its input (`relu_`), or to a result that it is given (`div.out`), follows the
    rule of the operator that returns a new tensor.
    """
    for known in (operator, *_returning_new(operator)):
        namespace, name = known._schema.name.split("::")
        if namespace != "aten":
            return RULES.get(known._schema.name)  # a user's own: "library::operator"
        overload = known._schema.overload_name
        for base in dict.fromkeys((name, name.rstrip("_"))):
            for key in (f"{base}.{overload}", base):
                if key in RULES:
                    return RULES[key]
        random = torch.Tag.nondeterministic_seeded in known.tags
        if torch.Tag.pointwise in known.tags and not random:
            return Rule(elementwise.broadcast)
    return None


def _returning_new(operator: torch._ops.OpOverload) -> list[torch._ops.OpOverload]:
    """The operator of the same arguments that writes to none of them, if there is one."""
    schema = operator._schema
    name = schema.name.split("::")[1]
    packet = getattr(torch.ops.aten, name.removesuffix("_"), None)
    if packet is None or not schema.is_mutable:
        return []
    given = [str(argument.type) for argument in schema.arguments if not argument.is_out]
    overloads = [getattr(packet, overload) for overload in packet.overloads()]
    return [
        other
        for other in overloads
        if not other._schema.is_mutable
        and [str(argument.type) for argument in other._schema.arguments] == given
    ]
