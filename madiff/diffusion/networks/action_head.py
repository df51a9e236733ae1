"""What to do with a network's output where an action is wanted: one loss and one choice for both kinds of action."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def legal_logits(logits: Tensor, available: Tensor | None) -> Tensor:
    """Illegal actions get -inf, so that they carry no probability; logits and available (..., n).

    A row without any legal action (a padded step) is left as it is: it would turn into NaN otherwise.
    """
    if available is None:
        return logits
    illegal = ~available & available.any(-1, keepdim=True)
    return logits.masked_fill(illegal, float("-inf"))


def action_loss(output: Tensor, actions: Tensor, valid: Tensor, available: Tensor | None, discrete: bool) -> Tensor:
    """Mean over valid entries of the cross-entropy over legal actions, or of the squared error of tanh(output).

    output (..., n) logits or (..., A); actions (...) int64 or (..., A) in [-1, 1]; valid (...) bool.
    """
    if discrete:
        error = F.cross_entropy(legal_logits(output, available).flatten(0, -2), actions.flatten(), reduction="none")
        error = error.view(actions.shape)
    else:
        error = (torch.tanh(output) - actions).square().mean(-1)
    return torch.where(valid, error, 0.0).sum() / valid.sum().clamp(min=1)


def greedy_action(output: Tensor, available: Tensor | None, discrete: bool) -> Tensor:
    """The most probable legal action (...) int64, or tanh(output) (..., A)."""
    return legal_logits(output, available).argmax(-1) if discrete else torch.tanh(output)


def sampled_action(output: Tensor, available: Tensor | None, discrete: bool, generator: torch.Generator) -> Tensor:
    """A draw from the policy over legal actions (Gumbel-max); for continuous actions the deterministic one."""
    if not discrete:
        return torch.tanh(output)
    uniform = torch.rand(output.shape, generator=generator, device=output.device).clamp(min=1e-20)
    return (legal_logits(output, available) - torch.log(-torch.log(uniform))).argmax(-1)
