"""A small conditional diffusion model whose classes can be mixed; needs the extra `diffusion`."""

from typing import Any

import torch
from torch import Tensor, nn

from slipstream.testbed.conditional_module import ConditionalModule, train_conditional

train_conditional_diffusion = train_conditional  # any of them is trained in one way

STEPS = 1000  # of the noise, in training


class ConditionalDiffusion(ConditionalModule):
    """Makes images of classes, and of mixtures: the mean of the classes' embeddings, weighted.

    A U-Net of `diffusers` that predicts the noise, built from its configuration; nothing is
    downloaded. Inputs are brought to [-1, 1] by the ends that were seen in training.

    Source: "Denoising Diffusion Probabilistic Models" (Ho, Jain, Abbeel, 2020), algorithm 1;
    sampled by "Denoising Diffusion Implicit Models" (Song, Meng, Ermon, 2021), equation 12.
    """

    def __init__(
        self,
        shape: tuple[int, ...],
        *,
        classes: int,
        channels: tuple[int, ...] = (16, 32),
        steps: int = 20,
        seed: int = 0,
    ) -> None:
        """Draw initial weights.

        Args:
            shape: Of an input, (channels, side, side); the side can be halved once for each of
                `channels` but the first.
            classes: How many there are.
            channels: Of each level of the U-Net, multiples of 8.
            steps: In which a sample is made.
            seed: Of the weights; the global generator is not touched.

        Raises:
            ModuleNotFoundError: If diffusers is not installed.
            ValueError: If a size does not fit.
        """
        super().__init__()
        halvings = 2 ** (len(channels) - 1)
        if len(shape) != 3 or shape[1] != shape[2] or shape[1] % halvings:
            raise ValueError(
                f"shape must be (channels, side, side) with a side that {halvings} divides, got "
                f"{tuple(shape)}."
            )
        if not channels or any(count % 8 or count < 8 for count in channels):
            raise ValueError(f"channels must be multiples of 8, got {tuple(channels)}.")
        if not 1 <= steps <= STEPS:
            raise ValueError(f"steps must be from 1 to {STEPS}, got {steps}.")
        self.configuration: dict[str, Any] = {
            "shape": list(shape), "classes": classes, "channels": list(channels), "steps": steps,
        }  # fmt: skip
        self.shape, self.classes, self.steps = tuple(shape), classes, steps
        networks, schedulers = _diffusers()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.embedding = nn.Embedding(classes, 4 * channels[0])  # as the U-Net adds it to time
            self.network = networks(
                sample_size=shape[1], in_channels=shape[0], out_channels=shape[0],
                layers_per_block=1, block_out_channels=tuple(channels), norm_num_groups=8,
                down_block_types=("DownBlock2D",) * len(channels), add_attention=False,
                up_block_types=("UpBlock2D",) * len(channels), class_embed_type="identity",
            )  # fmt: skip
        self.schedule = schedulers(num_train_timesteps=STEPS, clip_sample=True)

    def forward(self, inputs: Tensor, labels: Tensor) -> Tensor:
        """Return the mean squared error of the predicted noise, 0-dim: what is minimised.

        Args:
            inputs: (examples, *shape).
            labels: Classes, (examples,), or rows of probabilities, (examples, classes).
        """
        low, high = self.get_buffer("ends")
        images = 2 * (inputs - low) / (high - low) - 1
        times = torch.randint(STEPS, (len(inputs),), device=inputs.device)
        noise = torch.randn_like(images)
        noisy = self.schedule.add_noise(images, noise, times)
        return nn.functional.mse_loss(self._noise(noisy, times, self._condition(labels)), noise)

    @torch.no_grad()
    def sample(self, labels: Tensor, generator: torch.Generator) -> Tensor:
        """Make one input for each label.

        Args:
            labels: Rows of probabilities, (examples, classes), or classes, (examples,).
            generator: All randomness comes from it.

        Returns:
            Inputs on the scale of those in training, (examples, *shape).
        """
        condition = self._condition(labels.to(self.embedding.weight.device))
        size = len(labels), *self.shape
        images = torch.randn(size, generator=generator, device=generator.device).to(condition)
        self.schedule.set_timesteps(self.steps)
        for time in self.schedule.timesteps:
            predicted = self._noise(images, time, condition)
            images = self.schedule.step(predicted, time, images).prev_sample
        low, high = self.get_buffer("ends")
        made: Tensor = low + (high - low) * (images.clamp(-1, 1) + 1) / 2
        return made

    def _noise(self, images: Tensor, times: Tensor, condition: Tensor) -> Tensor:
        predicted: Tensor = self.network(images, times, class_labels=condition).sample
        return predicted


def _diffusers() -> tuple[Any, Any]:
    """The U-Net and the schedule, imported when they are needed."""
    try:
        from diffusers.models.unets.unet_2d import UNet2DModel
        from diffusers.schedulers.scheduling_ddim import DDIMScheduler
    except ImportError as error:
        raise ModuleNotFoundError(
            "A conditional diffusion model needs diffusers: pip install 'slipstream[diffusion]'"
        ) from error
    return UNet2DModel, DDIMScheduler
