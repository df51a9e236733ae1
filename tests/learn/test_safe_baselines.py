"""Every safe baseline must keep a budget that its data breaks and behaviour cloning breaks further.

Five steps, each of which may pay up to what the observation says and then costs 1: all five cost 5, the data 3.2 on
average; careful steps pay a quarter of the others. The budget is 2.
"""

import pytest

from tests.baselines.constrained_toys import walk, walk_data, walk_spec
from tests.learn.training import learnt

pytestmark = [pytest.mark.learn, pytest.mark.usefixtures("one_thread")]
BUDGET = 2.0


@pytest.fixture(scope="module")
def data():
    return walk_data()


def policy(algo, store, updates, **options):
    return learnt(algo, walk_spec(), store, updates, **options).policy()


def test_behaviour_cloning_breaks_the_budget(data):
    assert float(data.team_costs().mean()) > 3
    assert walk(policy("bc", data, 500))[1] > 4
    assert walk(policy("bc", data, 500, likelihood="gaussian", acting="sample"))[1] > 3


@pytest.mark.parametrize("algo, steps, options", [
    ("bcq-lag", 800, {"perturbation": 0.5, "latent_clip": 2.0, "samples": 4, "width": 64}),
    ("cpq", 1000, {}),
    ("cdt", 800, {"width": 32, "layers": 2, "context": 5}),
    ("coptidice", 1000, {"scalar_learning_rate": 1e-2}),
])  # fmt: skip
def test_keeps_the_budget_and_uses_a_larger_one(data, algo, steps, options):
    gained, spent = walk(policy(algo, data, steps, cost_limit=BUDGET, **options))
    freely_gained, freely_spent = walk(policy(algo, data, steps, cost_limit=10.0, **options))
    assert spent <= 1.05 * BUDGET and freely_spent > 1.5 * BUDGET
    assert freely_gained > gained + 0.3


@pytest.mark.parametrize("algo, steps, options", [("bc-safe", 500, {"cost_limit": BUDGET}), ("fisor", 600, {})])
def test_keeps_the_budget(data, algo, steps, options):
    assert walk(policy(algo, data, steps, **options))[1] <= BUDGET
