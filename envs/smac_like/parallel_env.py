"""One smac-like battle behind PettingZoo's parallel interface: the batched dynamics with a single copy."""

from __future__ import annotations

from envs.parallel_view import ParallelView

from .batched import SmacLike


class SmacLikeParallel(ParallelView):
    """Agents stay listed until the battle ends, dead ones with no-op as their only legal action.

    `infos[agent]` holds "action_mask" (actions,) int8, "cost" (always 0 here), "won", "battle_over" and
    "illegal_actions" (of the whole team in this step).
    """

    def __init__(
        self,
        *,
        scenario: str | None = None,
        agents: int | None = None,
        strict: bool = False,
        render_mode: str | None = None,
    ) -> None:
        battle = SmacLike(scenario=scenario, agents=agents, strict=strict)
        # A dead unit's features are zeros, so every observation lies in [-1, 1].
        super().__init__(battle, render_mode=render_mode, bound=1.0, render_fps=5)
