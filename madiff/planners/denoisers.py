"""The denoiser of a planner: which network its options name, for plans of this many features and waypoints."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from madiff.diffusion.networks.transformer import TemporalAgentTransformer
from madiff.diffusion.networks.unet import AgentAttentionUNet
from madiff.interfaces import UserError

NETWORKS = ("transformer", "unet")


def make_denoiser(config: Any, features: int, length: int, conditions: Mapping[str, int]) -> nn.Module:
    """config: network, width, multipliers (unet), layers and heads (transformer), agent_attention.

    Raises UserError for sizes that do not go together.
    """
    try:
        if config.network == "unet":
            network = AgentAttentionUNet(
                features, config.width, config.multipliers, conditions=conditions, attention=config.agent_attention
            )
            if length % network.divisor:
                raise ValueError(
                    f"a window of {length} waypoints, past, present and future, does not fit this U-Net; "
                    f"allowed: multiples of {network.divisor}"
                )
            return network
        return TemporalAgentTransformer(
            features, config.width, config.layers, config.heads, max_time=length, conditions=conditions,
            agent_attention=config.agent_attention,
        )  # fmt: skip
    except ValueError as error:
        raise UserError(str(error), "algo") from error
