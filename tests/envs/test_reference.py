"""The batched step against a unit-by-unit implementation, along random battles."""

import pytest
import torch
from reference import KEYS, play

from envs.randomness import draw_bits, uniforms_of_bytes
from envs.smac_like import SmacLike


def random_legal(mask, generator):
    return (torch.rand(mask.shape, generator=generator) * mask).argmax(-1)


def fight(mask, generator):
    """Attack at random where possible, else walk east, so that the armies meet."""
    attacks, east = mask.clone(), torch.zeros_like(mask)
    attacks[..., :6], east[..., 4] = False, mask[..., 4]
    return (torch.rand(mask.shape, generator=generator) * mask + 4.0 * attacks + 2.0 * east).argmax(-1)


def as_lists(state, copy):
    return {key: state[key][copy].T.tolist() if key == "position" else state[key][copy].tolist() for key in KEYS}


@pytest.mark.parametrize("name", ["3m", "2s3z", "MMM2", "6h_vs_8z", "2s_vs_1sc", "3s5z_vs_3s6z"])
def test_agrees_with_plain_python(name):
    env, generator = SmacLike(2, scenario=name), torch.Generator().manual_seed(0)
    step = env.reset(5)
    low, high = env.rules.low[..., 0].tolist(), env.rules.high[..., 0].tolist()
    compared, n = 0, env.rules.allies
    for t in range(40):
        choose = fight if t % 4 else random_legal
        actions, before = choose(step.available_actions, generator), env.state
        jitter = -1 + 3 * uniforms_of_bytes(draw_bits(before["key"], before["clock"], env.rules.count))
        step = env.step(actions)
        after = env.state
        for copy in range(2):
            if before["terminated"][copy]:
                continue
            given = as_lists(before, copy) | {"position": before["position"][copy].T.tolist()}
            expected = play(env.scenario, given, actions[copy].tolist(), jitter[..., copy].tolist(), low, high)
            alive = after["health"][copy] > 0
            for key in KEYS:
                got, want = as_lists(after, copy)[key], expected[key]
                if key == "target":  # the fallen aim at nothing anybody relies on
                    got, want = ([v for v, a in zip(x, alive, strict=True) if a] for x in (got, want))
                if key == "calm" and not env.rules.shields or key == "energy" and not env.rules.has_healers:
                    continue
                assert torch.allclose(
                    torch.tensor(got, dtype=torch.float64), torch.tensor(want, dtype=torch.float64), atol=2e-3
                ), key
            compared += 1
    assert compared >= 30
    hurt = (after["health"] < env.rules.health[:, 0]).any(0)
    assert hurt[:n].any() and hurt[n:].any()
