"""Recordings of sampling loops: buffers, shapes, draws and rules, with a stand-in for the graph on the CPU."""

import gc

import pytest
import torch

from madiff.diffusion import capture, computing, sharing
from madiff.diffusion.capture import MOST, PATIENCE, Recorder, changed, leaves
from madiff.diffusion.guidance import ClassifierFree, ClipX0, GradientGuidance
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Hook, Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver


class StandIn:
    """Does what a graph does, in the same memory: later runs write into what came of the first."""

    def __init__(self):
        self.recorded = self.replayed = 0

    def __call__(self, run, generators):
        self.recorded += 1
        outcome = run()

        def replay():
            self.replayed += 1
            for old, new in zip(leaves(outcome), leaves(run()), strict=True):
                old.copy_(new)

        return outcome, replay


@pytest.fixture
def graph():
    graph = StandIn()
    computing.use(computing.Computing(recorder=Recorder(graph, "cpu")))
    yield graph
    computing.use(computing.PLAIN)


def network(x, t, cond):
    return torch.tanh(x.roll(1, 1) + t.view(-1, 1, 1, 1) + cond["shift"].view(-1, 1, 1, 1))


class Reports(Hook):
    """Moves by what it is told, and draws."""

    def after(self, x_prev, x_next, x0_hat, t, s, ctx):
        noise = torch.randn(x_next.shape, generator=ctx["generator"])
        push = ctx["push"].view(-1, 1, 1, 1).repeat_interleave(ctx["candidates"], 0)
        return x_next + push * noise, {"mean": x_next.mean()}


def sampler(*hooks, solver="ddpm"):
    schedule = make_schedule("cosine")
    return Sampler(schedule, make_parametrization("x0", schedule), make_solver(solver), hooks)


def given(rows=3, seed=0):
    """All that changes from call to call."""
    draw = torch.Generator().manual_seed(seed)
    value = torch.randn(rows, 4, 2, 5, generator=draw)
    return {
        "steps": 3, "candidates": 2, "known": (value, (torch.arange(4) < 2).float().view(1, 4, 1, 1)),
        "cond": {"shift": torch.rand(rows, generator=draw)}, "context": {"push": torch.rand(rows, generator=draw)},
    }  # fmt: skip


@torch.no_grad()
def drawn(sampler, rows=3, seed=0, generator=None, denoiser=network, **more):
    generator = torch.Generator().manual_seed(seed) if generator is None else generator
    return sampler.sample(denoiser, (rows, 4, 2, 5), generator=generator, **{**given(rows, seed), **more})


def eagerly(*arguments, **options):
    in_use = computing._used
    computing.use(computing.PLAIN)
    try:
        return drawn(*arguments, **options)
    finally:
        computing.use(in_use)


def same(one, other):
    return (
        torch.equal(one.x, other.x) and one.calls == other.calls and list(one.info) == list(other.info)
        and all(torch.equal(a, b) for name in one.info for a, b in zip(one.info[name], other.info[name], strict=True))
    )  # fmt: skip


def test_replays_give_what_the_loop_gives_for_other_values_and_draws(graph):
    plans = sampler(ClipX0(), Reports())
    found = [drawn(plans, seed=seed) for seed in range(6)]
    assert (graph.recorded, graph.replayed) == (1, 6 - PATIENCE)
    # compared at the end: no result lies in memory that a later run has written to
    assert all(same(one, eagerly(plans, seed=seed)) for seed, one in enumerate(found))
    assert not torch.equal(found[4].x, found[5].x)
    assert len(found[5].info["mean"]) == 3


def test_the_callers_generator_goes_on_as_it_would_have(graph):
    plans, ours, theirs = sampler(Reports()), torch.Generator().manual_seed(5), torch.Generator().manual_seed(5)
    found = [drawn(plans, generator=ours) for _ in range(5)]
    expected = [eagerly(plans, generator=theirs) for _ in range(5)]
    assert graph.replayed and all(map(same, found, expected))
    assert torch.equal(ours.get_state(), theirs.get_state())
    other = torch.Generator().manual_seed(6)  # as after a policy's reset: another generator, the same recording
    assert same(drawn(plans, generator=other), eagerly(plans, generator=torch.Generator().manual_seed(6)))
    assert graph.recorded == 1


def test_every_shape_number_and_object_has_a_recording_of_its_own(graph):
    plans = sampler()
    other = ClassifierFree(lambda x, t, cond: x, 1.0)
    changes = [{}, {"rows": 5}, {"steps": 2}, {"temperature": 0.5}, {"candidates": 1}, {"denoiser": other}]
    for count, change in enumerate(changes, start=1):
        for seed in range(PATIENCE + 2):
            assert same(drawn(plans, seed=seed, **change), eagerly(plans, seed=seed, **change)), change
        assert graph.recorded == count
    drawn(plans, rows=4)  # a last, smaller batch that comes once
    assert graph.recorded == len(changes)
    plans.hooks = (ClipX0(-0.1, 0.1),)
    for seed in range(PATIENCE + 1):
        assert drawn(plans, seed=seed).x[:, :, 2:].abs().max() <= 0.1
    assert graph.recorded == len(changes) + 1


def test_there_are_no_more_recordings_than_agreed_and_none_outlives_its_sampler(graph):
    plans, recorder = sampler(), computing.recorder()
    for temperature in range(MOST + 2):
        for _ in range(PATIENCE + 1):
            drawn(plans, rows=1, steps=1, temperature=float(temperature))
    assert graph.recorded == MOST
    for _ in range(2 * MOST):  # functions made anew for every call are not kept for ever
        drawn(plans, rows=1, steps=1, denoiser=lambda x, t, cond: x)
    assert len(recorder.kept[plans].asked) <= MOST
    del plans
    gc.collect()
    assert not len(recorder.kept)


class Watching(Hook):
    capturable = False


class Crew:
    def compute(self, network, given):
        return network(*given)

    def average(self, gradients):
        return gradients


def test_what_cannot_be_recorded_runs_as_it_stands(graph):
    plans = sampler()
    for seed in range(PATIENCE + 2):
        with torch.enable_grad():
            plans.sample(network, (3, 4, 2, 5), generator=torch.Generator(), **given())
        with sharing.among(Crew()):
            drawn(plans, seed=seed)
        assert same(drawn(sampler(Watching()), seed=seed), eagerly(sampler(Watching()), seed=seed))
        drawn(plans, seed=seed, context={"push": torch.rand(3), "told": [set()]})
    watching = sampler(Watching())
    for seed in range(PATIENCE + 2):
        drawn(watching, seed=seed)
    assert graph.recorded == 0
    computing.use(computing.Computing(recorder=Recorder(graph, "cuda")))  # tensors on another device than the graphs
    for seed in range(PATIENCE + 2):
        drawn(plans, seed=seed)
    assert graph.recorded == 0


def test_guidance_by_gradients_is_recorded_too(graph):
    plans = sampler(GradientGuidance(lambda x, t: -x.square().sum((1, 2, 3)), 0.1, repeats=2), solver="ddim")
    assert all(same(drawn(plans, seed=seed), eagerly(plans, seed=seed)) for seed in range(5))
    assert graph.recorded == 1


def test_nests_keep_their_kinds():
    class Pair(tuple):
        pass

    tree = {"b": [torch.ones(2), (1, "x")], "a": make_solver("ddim").schedules, "p": Pair([torch.zeros(1)])}
    found = changed(tree, torch.clone, lambda generator: generator)
    assert found["b"][1] == (1, "x") and found["a"] == tree["a"] and isinstance(found["p"], Pair)
    assert torch.equal(found["b"][0], tree["b"][0]) and found["b"][0] is not tree["b"][0]
    assert [len(leaf) for leaf in leaves(tree)] == [2, 1]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="CUDA graphs need a GPU")
@pytest.mark.parametrize("solver", ["ddim", "ddpm"])
def test_cuda_graphs_give_what_the_loop_gives(solver):
    device = torch.device("cuda")
    guidance = GradientGuidance(lambda x, t: -x.square().sum((1, 2, 3)), 0.1, repeats=2)
    plans, recorder = sampler(ClipX0(), guidance, solver=solver), capture.Recorder()
    drawing = {"steps": 3, "candidates": 2}

    @torch.no_grad()
    def sample(seed):
        told = given(3, seed)
        return plans.sample(
            network, (3, 4, 2, 5), generator=torch.Generator(device).manual_seed(seed), **drawing,
            known=tuple(entry.to(device) for entry in told["known"]),
            cond={name: value.to(device) for name, value in told["cond"].items()},
        )  # fmt: skip

    expected = [sample(seed).x for seed in range(6)]
    computing.use(computing.Computing(recorder=recorder))
    try:
        found = [sample(seed).x for seed in range(6)]
    finally:
        computing.use(computing.PLAIN)
    assert len(recorder.kept[plans].recordings) == 1
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other)
