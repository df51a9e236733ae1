"""Training windows cut from a store by index, on the device: no workers, no Python per sample."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Sequence
from typing import Annotated, TypedDict

import torch
from jaxtyping import Bool, Float, Float32, Int64, Shaped
from torch import Tensor

from madiff.data.store import EpisodeStore
from madiff.interfaces import UserError

EXTRAS = ("rewards", "costs", "terminated", "state", "next_available_actions")


class Entries(TypedDict, total=False):
    """What a batch of B windows of k = history + horizon steps may hold; see `WindowSampler.gather`."""

    transition_valid: Bool[Tensor, "B k"]
    valid: Bool[Tensor, "B k+1"]
    observations: Float[Tensor, "B k+1 A O"]
    actions: Int64[Tensor, "B k A"] | Float[Tensor, "B k A D"]
    available_actions: Bool[Tensor, "B k A n"]
    next_available_actions: Bool[Tensor, "B k A n"]
    rewards: Float[Tensor, "B k A"]
    costs: Float[Tensor, "B k A"]
    terminated: Bool[Tensor, "B k"]
    state: Float[Tensor, "B k+1 S"]
    returns: Float[Tensor, "B A"]
    episode: Int64[Tensor, " B"]
    time: Int64[Tensor, " B"]


Windows = Annotated[dict[str, Tensor], Entries]


class WindowSampler:
    """Windows of `history` past and `horizon` future steps around a "now", uniform over all transitions.

    History before the first observation repeats it, the future after the last repeats that (MADiff, arXiv 2305.17330,
    section 4: no zero padding); masks say which entries are real.
    discount: of the return-to-go, in [0, 1]. observations: (sum(T+1), A, any) in place of the store's own, for
    instance normalised. extras: further entries per window, any of rewards, costs, terminated, state and
    next_available_actions (which stays away, like available_actions, where the data has none).
    stride: environment steps between two entries of a window; `history` and `horizon` count entries.
    weights: (E,) >= 0, how often each episode's transitions are drawn relative to the others'; None for all alike.
    """

    def __init__(
        self,
        store: EpisodeStore,
        *,
        history: int,
        horizon: int,
        batch_size: int,
        device: torch.device | str = "cpu",
        discount: float = 1.0,
        observations: Tensor | None = None,
        extras: Sequence[str] = (),
        weights: Tensor | None = None,
        stride: int = 1,
    ) -> None:
        observations = store.observations if observations is None else observations
        check_arguments(store, history, horizon, batch_size, discount, observations, extras, stride)
        self.batch_size, self.transitions = batch_size, store.transitions
        self.shape = {"history": history, "horizon": horizon, "stride": stride, "discount": discount, "extras": extras}
        episode = store.episode_of
        first = store.offsets[episode]
        ends = torch.zeros(store.transitions, dtype=torch.bool)
        ends[store.offsets + store.lengths - 1] = store.terminated
        fields = {
            "observations": observations,
            "actions": store.actions,
            "available_actions": store.available_actions,
            "rewards": store.rewards,
            "costs": store.costs,
            "terminated": ends,
            "state": store.state,
            "next_available_actions": store.available_actions,
        }
        wanted = ("observations", "actions", "available_actions", *extras)
        self.fields = {name: fields[name].to(device) for name in wanted if fields[name] is not None}
        self.returns = returns_to_go(store, discount).to(device)
        self.episode, self.first = episode.to(device), first.to(device)
        self.last = (first + store.lengths[episode] - 1).to(device)
        self.steps = stride * torch.arange(-history, horizon + 1, device=device)
        self.cumulative = None if weights is None else cumulative_weights(store, weights).to(device)

    def sample(self, generator: torch.Generator) -> Windows:
        """A random batch, see `gather`; the generator may live on the CPU or on the device."""
        device = generator.device
        if self.cumulative is None:
            now = torch.randint(self.transitions, (self.batch_size,), generator=generator, device=device)
            return self.gather(now.to(self.steps.device))
        share = torch.rand(self.batch_size, generator=generator, device=device, dtype=torch.float64)
        return self.gather(torch.searchsorted(self.cumulative, share.to(self.steps.device), right=True))

    def over(self, store: EpisodeStore, observations: Tensor) -> WindowSampler:
        """The same windows of other episodes, all of them drawn alike; observations: in place of the store's own."""
        return WindowSampler(
            store, batch_size=self.batch_size, device=self.steps.device, observations=observations, **self.shape
        )

    def of_size(self, batch_size: int) -> WindowSampler:
        """The same source with batches of another size."""
        found = copy.copy(self)
        found.batch_size = batch_size
        return found

    def all_windows(self, batch_size: int) -> Iterator[Windows]:
        """Every window once, in order; the last batch may be smaller."""
        for now in torch.arange(self.transitions, device=self.steps.device).split(batch_size):
            yield self.gather(now)

    def gather(self, now: Int64[Tensor, " B"]) -> Windows:
        """The windows around the transitions `now` (B,), with h = history and H = horizon.

        observations (B, h+1+H, A, O): index h is now; valid (B, h+1+H) bool. Entries per transition from index i to
        i+1 (with a stride: of its first step): actions (B, h+H, A[, D]), available_actions (B, h+H, A, n),
        transition_valid (B, h+H) bool, and of the extras rewards, costs (B, h+H, A), terminated (B, h+H),
        next_available_actions (B, h+H, A, n), those one step on; state is per observation. Outside the episode they
        repeat its first or last entry. returns (B, A): discounted sum of rewards from now on; episode, time (B,).
        """
        episode, first, last = self.episode[now], self.first[now], self.last[now]
        step = now[:, None] + self.steps
        inside = (step >= first[:, None]) & (step <= last[:, None] + 1)
        clamped = torch.minimum(torch.maximum(step, first[:, None]), last[:, None] + 1)
        observed = clamped + episode[:, None]
        taken = torch.minimum(clamped[:, :-1], last[:, None])
        rows = {
            "observations": observed,
            "state": observed,
            "available_actions": taken + episode[:, None],
            "next_available_actions": taken + episode[:, None] + 1,
        }
        windows = {name: take(values, rows.get(name, taken)) for name, values in self.fields.items()}
        return windows | {
            "valid": inside,
            "transition_valid": inside[:, :-1] & inside[:, 1:],
            "returns": self.returns[now],
            "episode": episode,
            "time": now - first,
        }


def cumulative_weights(store: EpisodeStore, weights: Float[Tensor, " E"]) -> Float[Tensor, " transitions"]:
    """(sum T,) float64 rising to 1: the distribution function of a draw with P(transition) ~ its episode's weight."""
    weights = weights.detach().cpu().double()
    if weights.shape != (store.episodes,) or not bool(torch.isfinite(weights).all() & (weights >= 0).all()):
        raise UserError(f"of shape {tuple(weights.shape)}", "weights", f"{store.episodes} finite numbers >= 0")
    total = weights[store.episode_of].cumsum(0)
    if not total[-1] > 0:
        raise UserError("are all zero", "weights", "at least one positive")
    return total / total[-1]


def take(values: Shaped[Tensor, "N ..."], rows: Int64[Tensor, "*rows"]) -> Tensor:
    """values[rows] with index_select, several times faster than advanced indexing on the CPU."""
    return values.index_select(0, rows.reshape(-1)).reshape(*rows.shape, *values.shape[1:])


def returns_to_go(store: EpisodeStore, discount: float = 1.0) -> Float32[Tensor, "transitions A"]:
    """(sum T, A) float32: sum_k discount^k reward_{t+k} to the end of the episode, for every transition.

    By doubling: a sum over 2m steps is the sum over m steps plus discount^m times the one m steps later, so the
    longest episode costs log2(T) passes over the flat rewards and no padding.
    """
    total = store.rewards.double()
    remaining = (store.offsets + store.lengths)[store.episode_of] - torch.arange(store.transitions)
    span, longest = 1, int(store.lengths.max())
    while span < longest:
        later = total[span:] * (remaining[:-span] > span)[:, None]
        total = torch.cat([total[:-span] + discount**span * later, total[-span:]])
        span *= 2
    return total.float()


def check_arguments(
    store: EpisodeStore,
    history: int,
    horizon: int,
    batch_size: int,
    discount: float,
    observations: Tensor,
    extras: Sequence[str],
    stride: int,
) -> None:
    least_of = {"history": (history, 0), "horizon": (horizon, 1), "batch_size": (batch_size, 1), "stride": (stride, 1)}
    for name, (value, least) in least_of.items():
        if value < least:
            raise UserError(f"is {value}", name, f"at least {least}")
    if not 0.0 <= discount <= 1.0:
        raise UserError(f"is {discount}", "discount", "a number in [0, 1]")
    if observations.shape[:2] != store.observations.shape[:2]:
        raise UserError(f"has shape {tuple(observations.shape)}", "observations", tuple(store.observations.shape))
    offered = [name for name in EXTRAS if name != "state" or store.state is not None]
    if unknown := [name for name in extras if name not in offered]:
        raise UserError(f"{', '.join(unknown)} not offered", "extras", offered)
