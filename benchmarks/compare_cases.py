"""Small networks, trained here, and all that is made of them: who descends from whom is known.

A `Node` is a checkpoint with what it was made of. `truth` says what two of them are to each other.
"""

import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import islice
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from slipstream.symmetry.neuron_groups import NeuronGroups
from slipstream.symmetry.permutation import Permutation
from slipstream.symmetry.tracing import find_neuron_groups
from slipstream.testbed import load_data

How = Literal["init", "train", "copy", "save", "quantise", "prune", "permute", "merge", "other"]
Weights = dict[str, Tensor]
PLAIN = {  # what a step makes of a checkpoint, in the words of a verdict
    "train": "fine-tune",
    "copy": "identical",
    "save": "re-saved",
    "quantise": "quantised",
    "prune": "pruned",
    "permute": "permuted",
    "merge": "merged",
}


@dataclass(frozen=True)
class Node:
    """A checkpoint, and how it was made."""

    weights: Any  # weights, or the path of files
    how: How
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Setting:
    """A network with two tasks, and how it is trained."""

    name: str
    make: Callable[[int], nn.Module]
    batch: Callable[[torch.Generator, str], Mapping[str, Any]]  # of task "a", "b" or "c"
    loss: Callable[[nn.Module, Mapping[str, Any]], Tensor]
    outputs: Callable[[nn.Module, Mapping[str, Any]], Tensor]
    example: Any
    head: str  # the module of the outputs
    held_out: bool = False  # nothing was tuned on it
    groups: NeuronGroups | None = field(default=None, compare=False)


def weights_in(model: nn.Module) -> Weights:
    """Return a copy of a model's state dict, each tied tensor once."""
    named = dict(model.named_parameters()) | dict(model.named_buffers())
    kept = [n for n in model.state_dict() if n in named]
    return {n: named[n].detach().clone() for n in kept}


def train(
    setting: Setting,
    start: nn.Module,
    steps: int,
    task: str,
    *,
    seed: int = 1,
    optimizer: str = "adam",
    after: Callable[[nn.Module], None] = lambda _: None,
    loss: Callable[[nn.Module, Mapping[str, Any]], Tensor] | None = None,
) -> nn.Module:
    """Return a trained copy; parameters that need no gradient are frozen."""
    model = copy.deepcopy(start).train()
    generator = torch.Generator().manual_seed(seed)
    torch.manual_seed(seed)  # of dropout
    moving = [p for p in model.parameters() if p.requires_grad]
    rules: dict[str, Callable[[], torch.optim.Optimizer]] = {
        "adam": lambda: torch.optim.Adam(moving, 1e-3),
        "adamw": lambda: torch.optim.AdamW(moving, 1e-3, weight_decay=0.1),
        "sgd": lambda: torch.optim.SGD(moving, 0.02, momentum=0.9, weight_decay=5e-4),
    }
    rule = rules[optimizer]()
    for _ in range(steps):
        batch = setting.batch(generator, task)
        rule.zero_grad()
        torch.autograd.backward((loss or setting.loss)(model, batch))
        rule.step()
        after(model)
    return model


def genealogy(setting: Setting, seed: int, *, most: int = 1000) -> dict[str, Node]:
    """Train a network and make all kinds of things of it."""
    init = setting.make(seed)
    early = train(setting, init, most // 4, "a", seed=seed)
    base = train(setting, early, most // 4, "a", seed=seed + 50)
    tuned = {
        f"{count} steps": train(setting, base, count, "b", seed=seed + 2)
        for count in (1, 10, 100, most)
    }
    found = {
        "init": Node(weights_in(init), "init"),
        "early": Node(weights_in(early), "train", ("init",)),
        "base": Node(weights_in(base), "train", ("early",)),
    }
    found |= {name: Node(weights_in(model), "train", ("base",)) for name, model in tuned.items()}
    found |= _trained(setting, base, seed)
    found |= _others(setting, base, seed, most)
    found |= _rounded(setting, base, tuned["100 steps"], seed)
    found |= _averaged(found)
    found |= _saved(found["base"].weights)
    if setting.groups is not None:
        found |= _reordered(setting, base, seed)
    return found


def _trained(setting: Setting, base: nn.Module, seed: int) -> Iterator[tuple[str, Node]]:
    """Fine-tunes of special kinds."""
    made = {
        "other task": train(setting, base, 100, "c", seed=seed + 3),
        "sgd": train(setting, base, 100, "b", seed=seed + 4, optimizer="sgd"),
        "adamw": train(setting, base, 100, "b", seed=seed + 5, optimizer="adamw"),
    }
    frozen = copy.deepcopy(base)
    matrices = [p for p in frozen.parameters() if p.dim() > 1]
    for value in matrices[: len(matrices) // 2]:
        value.requires_grad_(False)
    made["frozen"] = train(setting, frozen, 100, "b", seed=seed + 6)
    headed = copy.deepcopy(base)
    torch.manual_seed(seed + 7)
    headed.get_submodule(setting.head).reset_parameters()  # type: ignore[operator]
    made["new head"] = train(setting, headed, 100, "c", seed=seed + 7)
    nodes = {name: Node(weights_in(model), "train", ("base",)) for name, model in made.items()}
    nodes["lora"] = Node(_lora(setting, base, seed + 8), "train", ("base",))
    return nodes  # type: ignore[return-value]


def _lora(setting: Setting, base: nn.Module, seed: int, rank: int = 2) -> Weights:
    """Train a low-rank change of all matrices, and merge it."""
    model = copy.deepcopy(base)
    torch.manual_seed(seed)
    for module in list(model.modules()):
        weight = getattr(module, "weight", None)
        if isinstance(weight, Tensor) and weight.dim() == 2 and min(weight.shape) > 4 * rank:
            nn.utils.parametrize.register_parametrization(module, "weight", _LowRank(weight, rank))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_("parametrizations" in name and not name.endswith("original"))
    model = train(setting, model, 100, "b", seed=seed)
    for module in list(model.modules()):
        if hasattr(module, "parametrizations"):
            nn.utils.parametrize.remove_parametrizations(module, "weight")
    merged = weights_in(model)
    # BatchNorm's statistics moved as well, as they do.
    return {name: merged[name] for name in weights_in(base)}


class _LowRank(nn.Module):
    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        self.up = nn.Parameter(torch.zeros(weight.shape[0], rank))
        self.down = nn.Parameter(torch.randn(rank, weight.shape[1]) / weight.shape[1] ** 0.5)

    def forward(self, weight: Tensor) -> Tensor:
        return weight + self.up @ self.down


def _others(setting: Setting, base: nn.Module, seed: int, most: int) -> dict[str, Node]:
    """Networks that only learned the same."""
    other = train(setting, setting.make(seed + 1000), most // 2, "a", seed=seed + 50)
    teacher = copy.deepcopy(base).eval()

    def match_outputs(model: nn.Module, batch: Mapping[str, Any]) -> Tensor:
        with torch.no_grad():
            wanted = setting.outputs(teacher, batch).log_softmax(-1)
        given = setting.outputs(model, batch).log_softmax(-1)
        return functional.kl_div(given, wanted, reduction="batchmean", log_target=True)

    student = train(
        setting, setting.make(seed + 2000), most // 2, "a", seed=seed + 9, loss=match_outputs
    )
    return {
        "other seed": Node(weights_in(other), "other"),
        "distilled": Node(weights_in(student), "other"),
    }


def _rounded(setting: Setting, base: nn.Module, tuned: nn.Module, seed: int) -> dict[str, Node]:
    """Pruned, and in fewer bits."""
    weights = weights_in(base)
    masks = {
        n: v.abs() > v.abs().flatten().kthvalue(max(v.numel() // 2, 1)).values
        for n, v in weights.items()
        if v.dim() > 1
    }
    pruned = {n: v * masks[n] if n in masks else v for n, v in weights.items()}

    def mask_(model: nn.Module) -> None:
        with torch.no_grad():
            for name, value in model.named_parameters():
                if name in masks:
                    value.mul_(masks[name])

    sparse = copy.deepcopy(base)
    mask_(sparse)
    retrained = train(setting, sparse, 50, "b", seed=seed + 10, after=mask_)
    floating = {n: v for n, v in weights.items() if v.is_floating_point()}
    return {
        "pruned": Node(pruned, "prune", ("base",)),
        "pruned, trained": Node(weights_in(retrained), "train", ("pruned",)),
        "int8": Node(_few_bits(weights, 127), "quantise", ("base",)),
        "int4 of 100 steps": Node(_few_bits(weights_in(tuned), 7), "quantise", ("100 steps",)),
        "bf16": Node(weights | {n: v.bfloat16() for n, v in floating.items()}, "save", ("base",)),
        "fp16 in fp32": Node(
            weights | {n: v.half().float() for n, v in floating.items()}, "save", ("base",)
        ),
    }


def _few_bits(weights: Weights, levels: int) -> Weights:
    """Round every row of a matrix to whole multiples of a step."""
    found = dict(weights)
    for name, value in weights.items():
        if value.dim() > 1:
            rows = value.flatten(1)
            step = rows.abs().amax(1, keepdim=True).clamp_min(1e-12) / levels
            found[name] = ((rows / step).round() * step).view_as(value)
    return found


def _averaged(nodes: Mapping[str, Node]) -> dict[str, Node]:
    def mean(*names: str, weights: tuple[float, ...]) -> Node:
        parts = [nodes[name].weights for name in names]
        made = {
            n: sum((w * p[n] for w, p in zip(weights[1:], parts[1:], strict=True)), weights[0] * v)
            if v.is_floating_point()
            else v
            for n, v in parts[0].items()
        }
        return Node(made, "merge", names)

    return {
        "average": mean("100 steps", "other task", weights=(0.5, 0.5)),
        "towards sgd": mean("base", "sgd", weights=(0.7, 0.3)),
        "average of three": mean("adamw", "frozen", "lora", weights=(0.2, 0.3, 0.5)),
    }


def _saved(weights: Weights) -> dict[str, Node]:
    return {
        "copy": Node({n: v.clone() for n, v in weights.items()}, "copy", ("base",)),
        "prefixed": Node({f"module.{n}": v.clone() for n, v in weights.items()}, "save", ("base",)),
    }


def _reordered(setting: Setting, base: nn.Module, seed: int) -> dict[str, Node]:
    groups = setting.groups
    assert groups is not None
    weights = weights_in(base)
    order = Permutation.random(groups.without_signs(), seed=seed)
    moved = order.apply(weights)
    model = copy.deepcopy(base)
    model.load_state_dict(moved, strict=False)
    found = {
        "permuted": Node(moved, "permute", ("base",)),
        "permuted, trained": Node(
            weights_in(train(setting, model, 10, "b", seed=seed + 11)), "train", ("permuted",)
        ),
    }
    if any(group.signed for group in groups.groups):
        signed = Permutation.random(groups, seed=seed + 1)
        found["signs"] = Node(signed.apply(weights), "permute", ("base",))
    return found


def ancestors(nodes: Mapping[str, Node], name: str) -> dict[str, tuple[How, ...]]:
    """Return all that a checkpoint descends from, with the steps from there, and itself."""
    found: dict[str, tuple[How, ...]] = {name: ()}
    for parent in nodes[name].parents:
        for older, steps in ancestors(nodes, parent).items():
            if older not in found:
                found[older] = (*steps, nodes[name].how)
    return found


@dataclass(frozen=True)
class Truth:
    """What two checkpoints are to each other."""

    relations: frozenset[str]  # verdicts that say it
    parent: str | None  # the ancestor, if one descends from the other


_SAME = {"copy", "save"}


def truth(nodes: Mapping[str, Node], first: str, second: str) -> Truth:
    """Return what is known of a pair from how it was made."""
    above = {name: ancestors(nodes, name) for name in (first, second)}
    common = [name for name in above[first] if name in above[second]]
    if not common:
        return Truth(frozenset({"independent"}), None)
    for old, new in ((first, second), (second, first)):
        if old in above[new]:
            steps = above[new][old]
            return Truth(_told(steps), None if set(steps) <= {"copy", "permute"} else old)
    nearest = max(common, key=lambda name: len(ancestors(nodes, name)))
    steps = above[first][nearest] + above[second][nearest]
    if not steps:
        return Truth(frozenset(), None)
    copies = [name for name in (first, second) if set(above[name][nearest]) <= _SAME]
    parent = copies[0] if len(copies) == 1 else None  # what equals the ancestor is as good as it
    return Truth(_between(above[first][nearest], above[second][nearest]), parent)


def _told(steps: tuple[How, ...]) -> frozenset[str]:
    """Verdicts that are right of what came about by these steps."""
    changed = [step for step in steps if step != "copy"]
    if len(changed) <= 1:
        return frozenset({PLAIN[changed[0]] if changed else "identical"})
    if set(changed) <= _SAME:
        return frozenset({"re-saved"})
    return frozenset({"fine-tune", *(PLAIN[step] for step in changed if step != "save")})


def _between(first: tuple[How, ...], second: tuple[How, ...]) -> frozenset[str]:
    """Of two with a common ancestor: what is a copy of it counts as the ancestor."""
    real = [[step for step in steps if step not in _SAME] for steps in (first, second)]
    if not real[0] and not real[1]:
        same = {*first, *second} == {"copy"}
        return frozenset({"identical" if same else "re-saved"})
    if not real[0] or not real[1]:
        return _told(tuple(real[0] or real[1])) | {"siblings"}
    kinds = {*real[0], *real[1]}
    return frozenset({"permuted"} if kinds == {"permute"} else {"siblings"})


def judged(told: Any, known: Truth) -> Literal["right", "partly", "open", "wrong"]:
    """Return whether a verdict is right, right but not all there is to say, open, or wrong."""
    parent_is_right = told.parent in (None, known.parent)
    if told.relation == "fine-tune or siblings" and "fine-tune" not in known.relations:
        parent_is_right = True  # it says: if it is a fine-tune, of this one
    if known.parent is None and told.relation not in ("fine-tune", "merged"):
        parent_is_right = True
    if told.relation == "cannot tell":
        return "open"
    if told.relation == "fine-tune or siblings":
        lineage = known.relations & {"fine-tune", "siblings", "merged", "pruned", "quantised"}
        return "partly" if lineage and parent_is_right else "wrong"
    if told.relation not in known.relations or not parent_is_right:
        return "wrong"
    return "right"


def digits(name: str, make: Callable[[int], nn.Module], head: str, *, width: int = 8) -> Setting:
    """Return a classification of 8 x 8 digits; task b: mirrored images, c: other labels."""
    examples = load_data("digits").train
    images = functional.interpolate(examples.inputs.float(), size=(width, width))

    def batch(generator: torch.Generator, task: str) -> dict[str, Tensor]:
        chosen = torch.randint(0, len(images), (64,), generator=generator)
        shown, labels = images[chosen], examples.labels[chosen]
        return {
            "images": shown.flip(-1) if task == "b" else shown,
            "labels": (labels * 3 + 1) % 10 if task == "c" else labels,
        }

    def outputs(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
        found = model(given["images"])
        return getattr(found, "logits", found)  # type: ignore[no-any-return]

    def loss(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
        return functional.cross_entropy(outputs(model, given), given["labels"])

    return Setting(name, make, batch, loss, outputs, images[:2], head)


def text(name: str, make: Callable[[int], nn.Module], head: str) -> Setting:
    """Return a language model of random Markov chains, another one for each task."""
    chains = {
        task: torch.distributions.Dirichlet(torch.full((24,), 0.1)).sample((24,))
        for task in _seeded("abc")
    }

    def batch(generator: torch.Generator, task: str) -> dict[str, Tensor]:
        tokens = torch.randint(0, 24, (16, 1), generator=generator)
        for _ in range(23):
            after = torch.multinomial(chains[task][tokens[:, -1]], 1, generator=generator)
            tokens = torch.cat([tokens, after], 1)
        return {"input_ids": tokens}

    def outputs(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
        return model(input_ids=given["input_ids"]).logits[:, :-1].flatten(0, 1)  # type: ignore[no-any-return]

    def loss(model: nn.Module, given: Mapping[str, Any]) -> Tensor:
        return functional.cross_entropy(outputs(model, given), given["input_ids"][:, 1:].flatten())

    example = {"input_ids": torch.arange(16).view(2, 8), "use_cache": False}
    return Setting(name, make, batch, loss, outputs, example, head)


def _seeded(tasks: str) -> Iterator[str]:
    for number, task in enumerate(tasks):
        torch.manual_seed(100 + number)
        yield task


def mlp(seed: int, activation: type[nn.Module] = nn.Tanh, width: int = 48) -> nn.Module:
    """Return three layers; with tanh, neurons may change their signs."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Flatten(),
        nn.Linear(64, width), activation(), nn.Linear(width, width), activation(),
        nn.Linear(width, 10),
    )  # fmt: skip


def conv(seed: int, width: int = 16) -> nn.Module:
    """Return three convolutions with BatchNorm."""
    torch.manual_seed(seed)
    layers: list[nn.Module] = []
    for inputs, outputs, stride in ((1, width, 1), (width, 2 * width, 2), (2 * width, 32, 1)):
        layers += [
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(),
        ]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


def residual(seed: int) -> nn.Module:
    """Return a residual network with GroupNorm and depthwise convolutions."""
    torch.manual_seed(seed)
    return nn.Sequential(
        nn.Conv2d(1, 24, 3, padding=1), _Block(24), _Block(24),
        nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(96, 10),
    )  # fmt: skip


class _Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(1, width)
        self.depthwise = nn.Conv2d(width, width, 3, padding=1, groups=width)
        self.up, self.down = nn.Conv2d(width, 2 * width, 1), nn.Conv2d(2 * width, width, 1)

    def forward(self, inputs: Tensor) -> Tensor:
        inner = self.up(self.depthwise(self.norm(inputs)))
        return inputs + self.down(functional.gelu(inner))  # type: ignore[no-any-return]


def gpt2(seed: int) -> nn.Module:
    """Return a tiny GPT-2, its head tied to the embedding."""
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {
        "n_embd": 32,
        "n_layer": 2,
        "n_head": 2,
        "vocab_size": 24,
        "n_positions": 32,
    }
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def llama(seed: int) -> nn.Module:
    """Return a tiny Llama."""
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2}
    heads: dict[str, Any] = {"num_attention_heads": 4, "num_key_value_heads": 2}
    tokens: dict[str, Any] = {"bos_token_id": 0, "eos_token_id": 0, "pad_token_id": 0}
    return LlamaForCausalLM(
        LlamaConfig(**sizes, **heads, **tokens, vocab_size=24, max_position_embeddings=32)
    )


def vit(seed: int) -> nn.Module:
    """Return a tiny vision transformer."""
    from transformers import ViTConfig, ViTForImageClassification

    torch.manual_seed(seed)
    sizes: dict[str, Any] = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    shapes: dict[str, Any] = {
        "num_labels": 10,
        "intermediate_size": 64,
        "image_size": 8,
        "patch_size": 2,
        "num_channels": 1,
    }
    return ViTForImageClassification(ViTConfig(**sizes, **shapes))


def settings(only: str | None = None) -> list[Setting]:
    """Return the networks, with their neuron groups; the last ones are held out."""
    made: dict[str, Callable[[], Setting]] = {
        "mlp": lambda: digits("mlp", mlp, "5"),
        "conv": lambda: digits("conv", conv, "11"),
        "gpt2": lambda: text("gpt2", gpt2, "lm_head"),
        "relu mlp": lambda: digits("relu mlp", lambda s: mlp(s, nn.ReLU, 96), "5"),
        "residual": lambda: digits("residual", residual, "5"),
        "vit": lambda: digits("vit", vit, "classifier"),
        "llama": lambda: text("llama", llama, "lm_head"),
    }
    chosen = [(n, m) for n, m in islice(made.items(), None) if only is None or n == only]
    found = []
    for name, build in chosen:
        plain = build()
        groups = find_neuron_groups(plain.make(0).eval(), plain.example)
        held_out = name not in ("mlp", "conv", "gpt2")
        found.append(Setting(**{**vars(plain), "held_out": held_out, "groups": groups}))
    return found
