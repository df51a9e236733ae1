"""Diffusion policies with critics learn to join the good parts of random episodes, from few updates on one thread."""

import pytest

from madiff.policies import diffcps, diffusion_ql, dvf, edp, idql, ldcq, qgpo, sfbc, srdp
from tests.policies.chains import chain_return, trained_on_chain

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
CLIMB = {"batch_size": 128, "value_batch": 128, "q_weight": 4.0, "candidates": 1}
CLIMB_FAST = {**CLIMB, "sampler_steps": 4}
REGRESS = {**CLIMB_FAST, "q_weight": 10.0, "advantage_sharpness": 10.0}


@pytest.mark.parametrize(
    ("module", "updates", "options"),
    [
        (idql, 600, {"batch_size": 128}),
        (dvf, 600, {"batch_size": 128, "value_batch": 64, "future_width": 64, "future_layers": 2}),
        (sfbc, 600, {"batch_size": 128, "plan_every": 200, "support": 8}),
        (ldcq, 900, {"steps": 900, "horizon": 2, "execute": 1, "latent": 4, "sampler_steps": 5, "support": 8}),
        (qgpo, 400, {"batch_size": 128, "support_batch": 64, "support": 8}),
        (diffusion_ql, 400, CLIMB),
        (srdp, 400, CLIMB),
        (diffcps, 500, CLIMB),
        (edp, 400, CLIMB_FAST),
        (edp, 400, {**REGRESS, "guide": "crr"}),
        (edp, 400, {**REGRESS, "guide": "iql"}),
    ],
)  # fmt: skip
def test_the_corner_is_found(module, updates, options):
    """The data get 0.5, as does a policy that ignores the values, the best 1.

    Who climbs the values has no choice among candidates, which would get half of the way by itself.
    """
    assert chain_return(trained_on_chain(module, updates, **options).policy()) >= 0.85
