"""A conditional variational autoencoder of each agent's action: what the data would do (BCQ, arXiv 1812.02900, app. B).

Agents share it and are told who they are by their observation.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from madiff.diffusion.networks.mlp import mlp

LOG_STD = (-4.0, 15.0)  # of the encoder, as in BCQ's code


class ActionVAE(nn.Module):
    """Two hidden layers on both sides, a latent of twice the action's dimensions.

    real (agent or 1, D) bool: dimensions that are not padding; the others are decoded as 0.
    """

    real: Tensor

    def __init__(self, features: int, real: Tensor, width: int) -> None:
        super().__init__()
        actions = real.shape[-1]
        self.latent = 2 * actions
        self.encoder = mlp((features + actions, width, width, 2 * self.latent))
        self.decoder = mlp((features + self.latent, width, width, actions))
        self.register_buffer("real", real.clone(), persistent=False)

    def encode(self, observations: Tensor, actions: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and logarithm of the standard deviation of the latent, (..., latent) each."""
        mean, log_std = self.encoder(torch.cat([observations, actions], -1)).chunk(2, -1)
        return mean, log_std.clamp(*LOG_STD)

    def decode(self, observations: Tensor, latent: Tensor) -> Tensor:
        """(..., F) and (..., latent) -> actions (..., D) in [-1, 1]."""
        return torch.tanh(self.decoder(torch.cat([observations, latent], -1))) * self.real

    def divergence(self, observations: Tensor, actions: Tensor) -> Tensor:
        """KL divergence of the latent from the standard normal, a mean over its dimensions, (...)."""
        return gaussian_divergence(*self.encode(observations, actions))

    def loss(self, observations: Tensor, actions: Tensor, generator: torch.Generator, weight: float) -> Tensor:
        """Mean squared error of the reconstruction + weight times the KL divergence."""
        mean, log_std = self.encode(observations, actions)
        noise = torch.randn(mean.shape, generator=generator, device=generator.device).to(mean.device)
        decoded = self.decode(observations, mean + log_std.exp() * noise)
        return (decoded - actions).square().mean() + weight * gaussian_divergence(mean, log_std).mean()

    def sample(self, observations: Tensor, samples: int, generator: torch.Generator, clip: float) -> Tensor:
        """Actions (samples, ..., D) decoded from latents that are normal and clipped to [-clip, clip]."""
        shape = (samples, *observations.shape[:-1], self.latent)
        latent = torch.randn(shape, generator=generator, device=generator.device).to(observations.device)
        return self.decode(observations.expand(samples, *observations.shape), latent.clamp(-clip, clip))


def gaussian_divergence(mean: Tensor, log_std: Tensor) -> Tensor:
    """KL(N(mean, std^2) || N(0, 1)), mean over the last axis: -1/2 (1 + ln std^2 - mean^2 - std^2)."""
    return -0.5 * (1 + 2 * log_std - mean.square() - (2 * log_std).exp()).mean(-1)
