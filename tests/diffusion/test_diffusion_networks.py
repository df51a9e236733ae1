"""Networks: equivariance, independence of rows, sizes, and the U-Net against a reference written on its own."""

import pytest
import torch
from torch import nn

from madiff.diffusion.guidance import ClassifierFree, ClipX0
from madiff.diffusion.networks.mlp import MLPDenoiser, ResidualMLPDenoiser, mlp
from madiff.diffusion.networks.transformer import TemporalAgentTransformer, attention
from madiff.diffusion.networks.unet import AgentAttention, AgentAttentionUNet
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver
from tests.diffusion.reference_unet import copied_from, reference_plan

CONDITIONS = {"returns": 1, "visible": 2}
NETWORKS = {
    "unet": lambda: AgentAttentionUNet(5, width=16, conditions=CONDITIONS),
    "transformer": lambda: TemporalAgentTransformer(5, width=32, layers=2, conditions=CONDITIONS),
    "mlp": lambda: MLPDenoiser(5, width=32, conditions=CONDITIONS),
    "residual_mlp": lambda: ResidualMLPDenoiser(5, width=32, conditions=CONDITIONS).eval(),
}


def built(name) -> nn.Module:
    """A network with every parameter away from its zero start, in float64."""
    torch.manual_seed(0)
    network = NETWORKS[name]().double()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    return network


def batch(rows=3, agents=4, time=8):
    generator = torch.Generator().manual_seed(1)
    shapes = (rows, time, agents, 5), (rows,), (rows, agents, 1), (rows, agents, 2), (rows,)
    x, t, returns, visible, keep = (torch.rand(shape, generator=generator, dtype=torch.float64) for shape in shapes)
    return x, t, {"returns": returns, "visible": visible, "keep": (keep > 0.5).double()}


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_permuting_agents_permutes_the_output(name):
    network, (x, t, cond), order = built(name), batch(), torch.tensor([2, 0, 3, 1])
    permuted = {key: value if key == "keep" else value[:, order] for key, value in cond.items()}
    out = network(x, t, cond)
    assert out.shape == x.shape
    torch.testing.assert_close(network(x[:, :, order], t, permuted), out[:, :, order])


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_rows_are_independent(name):
    network, (x, t, cond) = built(name), batch()
    out = network(x, t, cond)
    alone = network(x[1:2], t[1:2], {key: value[1:2] for key, value in cond.items()})
    torch.testing.assert_close(alone, out[1:2])


@torch.no_grad()
@pytest.mark.parametrize("name", NETWORKS)
def test_output_depends_on_time_and_on_visible_conditions_only(name):
    network, (x, t, cond) = built(name), batch()
    cond["keep"] = torch.tensor([0.0, 1.0, 1.0]).double()
    out = network(x, t, cond)
    changed = (network(x, t, cond | {"returns": cond["returns"] + 1}) - out).abs().amax((1, 2, 3))
    assert changed[0] == 0 and changed[1:].min() > 1e-4
    assert (network(x, t + 0.1, cond) - out).abs().amax((1, 2, 3)).min() > 1e-4


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_agents_and_times_see_each_other(name):
    network, (x, t, cond) = built(name), batch()
    other = x.clone()
    other[:, -1, 1] += 1
    change = (network(other, t, cond) - network(x, t, cond)).abs()
    assert change[:, 0, 1].min() > 0 and change[:, 0, 2].min() > 0


@torch.no_grad()
@pytest.mark.parametrize("name", ["unet", "transformer"])
def test_the_order_of_time_matters(name):
    network, (x, t, cond) = built(name), batch()
    assert not torch.allclose(network(x.flip(1), t, cond).flip(1), network(x, t, cond), atol=1e-3)


@torch.no_grad()
@pytest.mark.parametrize(
    ("cls", "switch"), [(AgentAttentionUNet, "attention"), (TemporalAgentTransformer, "agent_attention")]
)
def test_without_agent_attention_agents_are_independent(cls, switch):
    torch.manual_seed(0)
    network = cls(5, width=32, conditions={"returns": 1}, **{switch: False})
    network.double()
    for parameter in network.parameters():
        nn.init.normal_(parameter, std=0.1)
    x, t, cond = batch()
    out = network(x, t, cond)
    for agent in range(4):
        own = {key: value if key == "keep" else value[:, agent : agent + 1] for key, value in cond.items()}
        torch.testing.assert_close(network(x[:, :, agent : agent + 1], t, own), out[:, :, agent : agent + 1])


@torch.no_grad()
def test_agent_attention_equals_loops():
    torch.manual_seed(0)
    layer, heads, agents = AgentAttention(32, 6, heads=4).double(), 4, 3
    layer.gamma.fill_(0.7)
    x, emb = torch.randn(2 * agents, 32, 5).double(), torch.randn(2 * agents, 6).double()
    mixed = layer.qkv(x) + layer.embedding(emb)[..., None]
    expected = x.clone()
    for row in range(2):
        for head in range(heads):
            rows = range(row * agents, (row + 1) * agents)
            q = [mixed[i, 2 * head : 2 * head + 2].flatten() for i in rows]
            k = [mixed[i, 8 + 2 * head : 10 + 2 * head].flatten() for i in rows]
            v = [mixed[i, 16 + 8 * head : 24 + 8 * head] for i in rows]
            for i in range(agents):
                weights = torch.softmax(torch.stack([q[i] @ k[j] / 10**0.5 for j in range(agents)]), 0)
                out = sum(weights[j] * v[j] for j in range(agents))
                expected[row * agents + i, 8 * head : 8 * head + 8] += 0.7 * out
    torch.testing.assert_close(layer(x, emb, agents), expected)


def test_attention_is_torchs():
    q, k, v = torch.randn(3, 2, 4, 7, 8, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention(q, k, v), nn.functional.scaled_dot_product_attention(q, k, v))


def single_agent(width=16):
    torch.manual_seed(0)
    unet = AgentAttentionUNet(5, width=width, conditions={"returns": 1}).double()
    return unet, copied_from(unet, 5, width).double()


@torch.no_grad()
def test_unet_with_one_agent_is_the_single_agent_unet():
    unet, reference = single_agent()
    x, t, cond = batch(agents=1)
    expected = reference(x[:, :, 0], t, cond["returns"][:, 0], cond["keep"])
    torch.testing.assert_close(unet(x, t, cond)[:, :, 0], expected, rtol=1e-9, atol=1e-9)
    for layer in unet.attention:
        layer.gamma.fill_(1.0)
    assert not torch.allclose(unet(x, t, cond)[:, :, 0], expected, atol=1e-4)


@torch.no_grad()
def test_planning_with_one_agent_is_single_agent_planning():
    unet, reference = single_agent()
    x, _, cond = batch(agents=1)
    history, returns = x[:, :3], cond["returns"]
    known = torch.zeros_like(x).index_copy(1, torch.arange(3), history), (torch.arange(8) < 3).view(8, 1, 1)
    schedule = make_schedule("cosine", 200)
    sampler = Sampler(schedule, make_parametrization("epsilon", schedule), make_solver("ddim"), [ClipX0()])
    sample = sampler.sample(
        ClassifierFree(unet, 1.2),
        x.shape,
        steps=10,
        cond={"returns": returns},
        known=known,
        temperature=0.5,
        generator=torch.Generator().manual_seed(2),
    )
    noise = torch.randn(x.shape, generator=torch.Generator().manual_seed(2), dtype=torch.float64)[:, :, 0]
    options = {"K": 200, "steps": 10, "weight": 1.2, "temperature": 0.5, "noise": noise}
    expected = reference_plan(reference, history[:, :, 0], returns[:, 0], 8, **options)
    assert sample.calls == 10
    torch.testing.assert_close(sample.x[:, :, 0], expected, rtol=1e-6, atol=1e-7)


def size(network):
    return sum(parameter.numel() for parameter in network.parameters())


def test_parameter_counts():
    with torch.device("meta"):
        official = AgentAttentionUNet(18, conditions={"returns": 1})
        independent = AgentAttentionUNet(18, conditions={"returns": 1}, attention=False)
        default = TemporalAgentTransformer(33, conditions={"returns": 1})
    assert size(independent) == pytest.approx(59.7e6, abs=0.1e6)
    assert size(official) == pytest.approx(64.3e6, abs=0.1e6)
    assert size(default) < 0.5e6


@pytest.mark.parametrize("multipliers", [(1,), (1, 2), (1, 2, 4, 4)])
def test_unet_takes_any_depth_and_names_the_lengths_it_can_halve(multipliers):
    unet = AgentAttentionUNet(3, width=16, multipliers=multipliers)
    multiple = 2 ** (len(multipliers) - 1)
    x, t = torch.randn(2, 2 * multiple, 2, 3), torch.rand(2)
    assert unet(x, t, {}).shape == x.shape
    if multiple > 1:
        with pytest.raises(ValueError, match=f"allowed: multiples of {multiple}"):
            unet(x[:, 1:], t, {})


@pytest.mark.parametrize(
    "call",
    [
        lambda: TemporalAgentTransformer(3, max_time=4)(torch.zeros(1, 5, 1, 3), torch.zeros(1), {}),
        lambda: TemporalAgentTransformer(3, width=50, heads=4),
        lambda: AgentAttentionUNet(3, width=12),
        lambda: MLPDenoiser(3, conditions={"returns": 1})(torch.zeros(1, 1, 1, 3), torch.zeros(1), {}),
    ],
)
def test_mistakes_name_what_is_allowed(call):
    with pytest.raises(ValueError, match="allowed: "):
        call()


def test_mlp_has_the_layers_asked_for():
    net = mlp((3, 8, 8, 2), nn.Tanh)
    assert [type(layer).__name__ for layer in net] == ["Linear", "Tanh", "Linear", "Tanh", "Linear"]
    x = torch.randn(4, 3)
    expected = net[4](torch.tanh(net[2](torch.tanh(net[0](x)))))
    torch.testing.assert_close(net(x), expected)
