"""How networks are computed: bfloat16 and compilation change speed and rounding, and nothing else."""

import copy

import pytest
import torch

from madiff.diffusion import computing, sharing
from madiff.diffusion.networks.mlp import MLPDenoiser
from madiff.diffusion.networks.transformer import TemporalAgentTransformer
from madiff.diffusion.networks.unet import AgentAttentionUNet
from madiff.diffusion.objective import denoising_loss
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver

HALF = computing.Computing(torch.bfloat16)
NETWORKS = {
    "transformer": lambda: TemporalAgentTransformer(6, conditions={"returns": 1}),  # the default one
    "unet": lambda: AgentAttentionUNet(6, 16, (1, 2), conditions={"returns": 1}),
    "mlp": lambda: MLPDenoiser(6, 32, conditions={"returns": 1}),
}


@pytest.fixture(autouse=True)
def plain_afterwards():
    yield
    computing.use(computing.PLAIN)


def made(name):
    """A network whose outputs are not zero, as those of fresh ones are."""
    network = NETWORKS[name]()
    for parameter in network.parameters():
        parameter.data += 0.05 * torch.randn_like(parameter)
    return network


def batch(rows=8):
    return torch.randn(rows, 8, 2, 6), {"returns": torch.rand(rows, 2, 1), "keep": torch.ones(rows)}


def loss_of(network, x, cond):
    """The loss of training, and its gradient, for the same draws every time."""
    schedule = make_schedule("cosine")
    parametrization = make_parametrization("x0", schedule)
    mask = (torch.arange(8) < 3).float().view(1, 8, 1, 1)
    loss, _ = denoising_loss(
        network, x, cond, schedule=schedule, parametrization=parametrization, known_mask=mask, weight=1 - mask,
        generator=torch.Generator().manual_seed(0),
    )  # fmt: skip
    return loss, torch.autograd.grad(loss, list(network.parameters()))


@pytest.mark.parametrize("name", NETWORKS)
def test_bfloat16_changes_the_loss_by_less_than_a_hundredth_and_no_type(name):
    network, (x, cond) = made(name), batch()
    exact, exact_gradient = loss_of(network, x, cond)
    computing.use(HALF)
    loss, gradient = loss_of(network, x, cond)
    assert loss.dtype == torch.float32 and all(g.dtype == torch.float32 for g in gradient)
    assert loss != exact and abs(loss / exact - 1) < 0.01
    ours, theirs = (torch.cat([g.flatten() for g in found]) for found in (gradient, exact_gradient))
    assert torch.cosine_similarity(ours, theirs, dim=0) > 0.99
    assert all(value.dtype == torch.float32 for value in network.state_dict().values())


def test_bfloat16_multiplies_in_bfloat16_alone():
    """Another implementation of one linear layer's product: both factors rounded, summed exactly, rounded again."""

    class Linear(sharing.RowWise):
        def __init__(self):
            super().__init__()
            self.layer = torch.nn.Linear(5, 3, bias=False)

        def forward(self, x):
            return self.layer(x)

    network, x = Linear(), torch.randn(4, 5)
    computing.use(HALF)
    rounded = [value.bfloat16().double() for value in (x, network.layer.weight)]
    torch.testing.assert_close(network(x), (rounded[0] @ rounded[1].T).bfloat16().float(), rtol=2**-7, atol=0)
    assert torch.equal(network(x), network(x).bfloat16().float())


def test_what_is_plain_is_the_network_itself_bit_for_bit():
    network, (x, cond) = made("mlp"), batch()
    t = torch.rand(len(x))
    as_it_stands = network.forward(x, t, cond)
    assert computing.recorder() is None
    assert torch.equal(network(x, t, cond), as_it_stands)
    computing.use(computing.Computing())
    assert torch.equal(network(x, t, cond), as_it_stands)


def test_known_entries_stay_exact_in_bfloat16():
    schedule = make_schedule("cosine")
    sampler = Sampler(schedule, make_parametrization("epsilon", schedule), make_solver("ddim"))
    network, (value, cond) = made("mlp"), batch()
    mask = (torch.arange(8) < 3).float().view(1, 8, 1, 1)
    computing.use(HALF)
    with torch.no_grad():
        x = sampler.sample(
            network, value.shape, steps=3, generator=torch.Generator().manual_seed(0), cond=cond, known=(value, mask)
        ).x
    assert x.dtype == torch.float32 and torch.equal(x[:, :3], value[:, :3])
    assert not torch.equal(x[:, 3:], x[:, 3:].bfloat16().float())  # the solver's own arithmetic is not rounded


def test_a_compiler_is_asked_for_the_whole_network_and_weights_keep_their_names():
    asked = []

    def compiler(network, given):
        asked.append((network, len(given[0])))
        return network.forward(*given)

    network, (x, cond) = made("mlp"), batch()
    names = list(network.state_dict())
    computing.use(computing.Computing(compiler=compiler))
    assert torch.equal(network(x, torch.rand(8), cond), network(x, torch.rand(8), cond)) is False
    assert [(one is network, rows) for one, rows in asked] == [(True, 8), (True, 8)]
    assert list(network.state_dict()) == names and list(copy.deepcopy(network).state_dict()) == names


def counted(function):
    """How many graphs torch compiles while a function runs."""
    from torch._dynamo.utils import counters

    before = counters["stats"]["unique_graphs"]
    function()
    return counters["stats"]["unique_graphs"] - before


@pytest.mark.learn
@pytest.mark.parametrize("name", NETWORKS)
def test_other_numbers_of_rows_compile_nothing_anew_but_for_few_rows_of_convolutions(name):
    from madiff.diffusion.compiling import Compiled

    torch._dynamo.reset()
    network, average = made(name), copy.deepcopy(made(name)).requires_grad_(False).eval()
    x, cond = batch(8)
    exact, exact_gradient = loss_of(network, x, cond)

    def plan(rows):
        x, cond = batch(rows)
        with torch.no_grad():
            t = torch.rand(rows)
            torch.testing.assert_close(average(x, t, cond), average.forward(x, t, cond), rtol=1e-4, atol=1e-5)

    computing.use(computing.Computing(compiler=Compiled(threads=1)))
    assert counted(lambda: loss_of(network, x, cond)) >= 1
    assert counted(lambda: loss_of(network, x, cond)) == 0
    loss, gradient = loss_of(network, x, cond)
    torch.testing.assert_close(loss, exact)
    torch.testing.assert_close(gradient, exact_gradient, rtol=1e-3, atol=1e-5)
    assert counted(lambda: plan(8)) >= 1
    assert counted(lambda: [plan(rows) for rows in (9, 13, 31, 8)]) == 0
    few = counted(lambda: [plan(rows) for rows in (5, 3, 7)])  # 2 agents: less than 16 rows are convolved otherwise
    assert few == (name == "unet")
    assert counted(lambda: [plan(rows) for rows in (6, 30, 2, 10)]) == 0
    assert counted(lambda: loss_of(network, x, cond)) == 0
