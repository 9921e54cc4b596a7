"""Options that name a source's generator and classifier."""

from dataclasses import dataclass

from slipstream.storage.plan_fields import option


@dataclass(frozen=True)
class SourceOptions:
    """Where the source's generator and classifier come from."""

    source: str = option(
        "digits",
        "digits, mnist:DIR or cifar10:DIR: a generator and a classifier are trained on it.",
    )
    source_epochs: int = option(30, "Epochs of that training.", minimum=1)
    generator: str | None = option(
        None,
        "Instead: a file of save_generator, or package.module:function that returns a "
        "ConditionalGenerator.",
    )
    classifier: str | None = option(
        None,
        "Instead: a run folder, or package.module:function that returns a function from inputs to "
        "logits.",
    )
