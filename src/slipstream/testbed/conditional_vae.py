"""A small conditional variational autoencoder whose classes can be mixed."""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from slipstream.evaluation import Batch, Task
from slipstream.training import Progress, TrainingPlan, TrainingResult, train


class ConditionalVAE(nn.Module):
    """Makes images of classes, and of mixtures: the mean of the classes' embeddings, weighted.

    An encoder and a decoder with two hidden layers each; inputs are brought to [0, 1] by the ends
    that were seen in training. Both see the embedding of the label.

    Source: "Auto-Encoding Variational Bayes" (Kingma, Welling, 2014); conditional as in
    "Semi-Supervised Learning with Deep Generative Models" (Kingma et al., 2014), model M2.

    Example:
        >>> vae = ConditionalVAE((1, 4, 4), classes=3, width=8, latent=2)
        >>> vae.sample(torch.full((5, 3), 1 / 3), torch.Generator()).shape
        torch.Size([5, 1, 4, 4])
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        classes: int,
        width: int = 256,
        latent: int = 16,
        embedding: int = 32,
        seed: int = 0,
    ) -> None:
        """Draw initial weights.

        Args:
            shape: Of an input.
            classes: How many there are.
            width: Units of each hidden layer.
            latent: Numbers that an input is encoded in.
            embedding: Numbers that stand for a class.
            seed: Of the weights; the global generator is not touched.
        """
        super().__init__()
        self.configuration: dict[str, Any] = {
            "shape": list(shape), "classes": classes, "width": width, "latent": latent,
            "embedding": embedding,
        }  # fmt: skip
        self.classes, self.latent = classes, latent
        size = torch.Size(shape).numel()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(classes, embedding)
            self.encoder = nn.Sequential(
                *_hidden(size + embedding, width), nn.Linear(width, 2 * latent)
            )
            self.decoder = nn.Sequential(
                *_hidden(latent + embedding, width), nn.Linear(width, size), nn.Unflatten(1, shape)
            )
        self.register_buffer("ends", torch.tensor([0.0, 1.0]))  # lowest and highest input

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean negative bound on the log likelihood, a 0-dim tensor: what is minimised.

        Args:
            inputs: (examples, *shape).
            labels: Classes, (examples,), or rows of probabilities, (examples, classes).
        """
        low, high = self.get_buffer("ends")
        pixels, condition = (inputs - low) / (high - low), self._condition(labels)
        mean, log_variance = self.encoder(torch.cat([pixels.flatten(1), condition], 1)).chunk(2, 1)
        z = mean + torch.randn_like(mean) * (log_variance / 2).exp()
        decoded = self.decoder(torch.cat([z, condition], 1))
        missed = nn.functional.binary_cross_entropy_with_logits(decoded, pixels, reduction="sum")
        apart = (mean.square() + log_variance.exp() - 1 - log_variance).sum() / 2
        loss: Tensor = (missed + apart) / len(inputs)
        return loss

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Make one input for each label.

        Args:
            labels: Rows of probabilities, (examples, classes), or classes, (examples,).
            generator: All randomness comes from it.

        Returns:
            Inputs on the scale of those in training, (examples, *shape).
        """
        z = torch.randn(len(labels), self.latent, generator=generator, device=generator.device)
        condition = self._condition(labels.to(self.embedding.weight.device))
        low, high = self.get_buffer("ends")
        decoded: Tensor = self.decoder(torch.cat([z.to(condition), condition], 1))
        made: Tensor = low + (high - low) * decoded.sigmoid()
        return made

    def _condition(self, labels: Tensor) -> Tensor:
        """The embedding of a class, or the mean over a mixture of classes."""
        if labels.is_floating_point():
            return labels.to(self.embedding.weight) @ self.embedding.weight
        embedded: Tensor = self.embedding(labels)
        return embedded


def train_conditional_vae(
    vae: ConditionalVAE,
    data: Iterable[Batch],
    *,
    epochs: int = 20,
    lr: float = 1e-3,
    seed: int = 0,
    progress: Progress | None = None,
) -> TrainingResult:
    """Train a conditional VAE in place, by Adam with a cosine schedule.

    Args:
        vae: What to train, on the device to train on.
        data: Batches `(inputs, labels)`; can be gone through again and again.
        epochs: Passes over the data.
        lr: Learning rate at the start.
        seed: Of the noise.
        progress: Called after each step with the steps done and their final number, if known.

    Returns:
        Losses, number of steps and time.

    Raises:
        ValueError: If `data` is empty, a label is of no class, or the loss is not finite.
    """
    learn_ends_(vae.get_buffer("ends"), data, classes=vae.classes)
    task = Task(vae, data, lambda model, batch: model(*batch))
    plan = TrainingPlan(epochs, "adam", lr, schedule="cosine", seed=seed)
    return train(task, plan, progress=progress)


def learn_ends_(ends: Tensor, data: Iterable[Batch], *, classes: int) -> None:
    """Set the lowest and the highest input of some data, and look at its labels.

    Args:
        ends: Receives the two, (2,).
        data: Batches `(inputs, labels)`.
        classes: How many there are.

    Raises:
        ValueError: If there is no batch, all inputs are equal or not finite, or a label is of no
            class.
    """
    low, high = float("inf"), float("-inf")
    for inputs, labels in data:
        low, high = min(low, float(inputs.min())), max(high, float(inputs.max()))
        if not 0 <= int(labels.min()) <= int(labels.max()) < classes:
            raise ValueError(f"labels must be classes from 0 to {classes - 1}, got {labels}.")
    if not 0 < high - low < float("inf"):
        raise ValueError(
            f"data must hold inputs of different finite values, got {low} to {high}: it is empty "
            "or damaged."
        )
    ends.copy_(torch.tensor([low, high], device=ends.device))


def _hidden(before: int, width: int) -> list[nn.Module]:
    return [nn.Linear(before, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
