"""A small conditional variational autoencoder whose classes can be mixed."""

from typing import Any

import torch
from torch import Tensor, nn

from slipstream.testbed.conditional_module import ConditionalModule, train_conditional

train_conditional_vae = train_conditional  # any of them is trained in one way


class ConditionalVAE(ConditionalModule):
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


def _hidden(before: int, width: int) -> list[nn.Module]:
    return [nn.Linear(before, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
