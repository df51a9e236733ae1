"""Battles put together by hand."""

import pytest
import torch

from envs.smac_like import SmacLike


@pytest.fixture
def arrange():
    """Make a one-copy environment whose units stand where the test says, the enemies after the allies.

    Other keywords set whole rows of the state, e.g. health=[...]; everybody begins ready to shoot.
    """

    def build(scenario, places, copies=1, **rows):
        env = SmacLike(copies, scenario=scenario) if isinstance(scenario, str) else SmacLike(copies, **scenario)
        env.reset(0)
        state = env.state
        state["position"] = torch.tensor(places, dtype=torch.float32).T.expand(copies, -1, -1).clone()
        for name, values in rows.items():
            state[name] = torch.tensor(values, dtype=state[name].dtype).expand(copies, -1).clone()
        env.set_state(state)
        return env

    return build
