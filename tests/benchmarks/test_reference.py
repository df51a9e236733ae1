"""The plain reference does the same job: the same windows, the same loss and the same plan from the same draws."""

import pytest
import torch

from benchmarks import against_reference, planning
from benchmarks.against_reference import autocast
from benchmarks.reference import Windows, renamed
from benchmarks.timing import has_bf16

TINY = (
    "algo=madiff-c", "model=official", "algo.width=16", "algo.multipliers=[1,2,2]", "algo.history=4",
    "algo.inverse_width=16", "algo.sampler_steps=3", "algo.batch_size=6", "algo.ema_start=0", "algo.ema_every=1",
)  # fmt: skip


@pytest.fixture(scope="module")
def sides():
    """Ours and the reference in float64, with attention among agents switched on."""
    ours = planning.learner(*TINY)
    for networks in (ours.networks, ours.ema.model):
        networks.double()
        for attention in networks["denoiser"].attention:
            torch.nn.init.constant_(attention.gamma, 0.5)
    return ours, against_reference.reference(ours)


@pytest.fixture(scope="module")
def windows(sides):
    ours, plain = sides
    store = planning.team_episodes(ours.spec, episodes=3)
    source = ours.batches(store)
    arrays = against_reference.arrays(store, ours.preprocessing.encode(store.observations))
    return source, Windows(arrays, plain.sizes)


def test_the_same_noise_becomes_the_same_plan(sides):
    ours, plain = sides
    plain.networks.double(), plain.averaged.double()
    plain.denoiser.frequencies.copy_(ours.networks["denoiser"].time[0].frequencies)
    history, noise, returns = (x.double() for x in against_reference.situation(ours, 2))
    policy = ours.policy()
    policy.reset(seed=0, n=2)
    with torch.no_grad():
        plan = policy.plan(history, torch.zeros(2, dtype=torch.long), noise, returns)
    found = plain.plan(history, noise, returns)
    assert (found - plan).abs().max() < 1e-5
    unguided = plain.plan(history, noise, torch.zeros_like(returns))
    assert (unguided - plan).abs().max() > 1e-3  # the condition, and so guidance, has a say


def test_items_cut_one_by_one_are_the_windows_of_the_sampler(windows):
    source, plain = windows
    indices = [0, 1, 56, 57, len(plain) - 1]
    expected = source.gather(torch.tensor(indices))
    batch = torch.utils.data.default_collate([plain[i] for i in indices])
    for name, values in batch.items():
        assert torch.allclose(values, expected[name]), name


def test_one_update_of_both_leaves_the_same_weights(sides, windows):
    ours, _ = sides
    batch = windows[0].gather(torch.tensor([0, 3, 57, 80, 100, 160]))
    batch["observations"], batch["returns"] = batch["observations"].double(), batch["returns"].double()
    plain = against_reference.reference(ours)
    plain.networks.double(), plain.averaged.double()
    plain.denoiser.frequencies.copy_(ours.networks["denoiser"].time[0].frequencies)
    before = plain.networks["denoiser"].head[1].weight.clone()
    metrics = ours.update(batch, torch.Generator().manual_seed(3))
    assert torch.allclose(plain.update(batch, torch.Generator().manual_seed(3)), metrics["loss"], rtol=1e-6)
    now = against_reference.reference(ours).networks.state_dict()
    for name, value in plain.networks.state_dict().items():
        assert torch.allclose(value.to(now[name].dtype), now[name], atol=1e-6), name
    assert (plain.networks["denoiser"].head[1].weight - before).abs().max() > 1e-5
    averaged = renamed(ours.ema.model.state_dict())
    assert all(torch.allclose(v, averaged[name], atol=1e-6) for name, v in plain.averaged.state_dict().items())


@pytest.mark.parametrize("compiles", [True, False])
def test_rows_pair_every_precision_with_the_reference_as_published(monkeypatch, compiles):
    def trial(device):
        if not compiles:
            raise RuntimeError("no C++ compiler")

    monkeypatch.setattr(against_reference, "OPTIONS", TINY)
    monkeypatch.setattr(against_reference, "ROUNDS", 1)
    monkeypatch.setattr(against_reference, "BATTLES", 2)
    monkeypatch.setattr(against_reference, "has_bf16", lambda: True)
    monkeypatch.setattr(against_reference, "Compiled", lambda threads: lambda network, given: network.forward(*given))
    monkeypatch.setattr(against_reference, "trial", trial)
    rows = list(against_reference.rows())
    pairs = ["float32 / reference in float32", "bf16 / reference in float32", "bf16 / reference in bf16"]
    compiled = [pair.replace(" /", " compiled /") for pair in pairs if compiles]
    assert [row["name"].split(", ", 2)[2] for row in rows] == [*pairs, *pairs, *compiled]
    assert all(row["ratio"] == pytest.approx(row["ours"] / row["peer"]) and row["ours"] > 0 for row in rows)
    assert {row["unit"] for row in rows} == {"updates/s", "plans/s"}


def test_bf16_is_what_the_processor_says_it_has(tmp_path):
    (tmp_path / "with").write_text("flags\t\t: fpu avx512f avx512_bf16 vme\n")
    (tmp_path / "without").write_text("flags\t\t: fpu avx512f vme\n")
    found = [has_bf16(tmp_path / name) for name in ("with", "without", "nowhere")]
    assert found == [True, False, False]


def test_the_reference_multiplies_in_bf16_where_it_is_asked():
    a = torch.full((1, 1), 1 + 2**-10)
    with autocast("bf16"):
        assert float(a @ a) == 1.0
    with autocast("float32"):
        assert float(a @ a) > 1.0
