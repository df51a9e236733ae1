"""Writes the frozen samples beside this file: python -m tests.diffusion.golden.make_goldens

Every case runs one solver on a small fixed denoiser in float64, with history, guidance and clipping. The numbers were
made with torch 2.13 on CPU; they change only when the meaning of a schedule, solver or the loop changes.
"""

import json
from pathlib import Path

import torch

from madiff.diffusion.guidance import ClassifierFree, ClipX0
from madiff.diffusion.parametrization import make_parametrization
from madiff.diffusion.sampler import Sampler
from madiff.diffusion.schedule import make_schedule
from madiff.diffusion.solvers import make_solver

FOLDER = Path(__file__).parent
CASES = {
    "ddpm": ("cosine", "epsilon", "ddpm", {}),
    "ddim": ("cosine", "epsilon", "ddim", {}),
    "ddim_eta": ("linear", "v", "ddim", {"eta": 0.5}),
    "dpmpp1": ("vp", "epsilon", "dpmpp1", {}),
    "dpmpp2m": ("cosine", "x0", "dpmpp2m", {}),
    "sde_dpmpp1": ("vp", "flow", "sde_dpmpp1", {}),
    "edm_euler": ("edm", "edm", "edm_euler", {}),
    "edm_heun": ("edm", "edm", "edm_heun", {"S_churn": 2.0}),
    "flow_euler": ("flow", "flow", "flow_euler", {}),
    "consistency": ("edm", "consistency", "consistency", {}),
}


def denoiser(x: torch.Tensor, t: torch.Tensor, cond: dict[str, torch.Tensor]) -> torch.Tensor:
    """A denoiser without parameters that mixes times and agents and reads its condition."""
    wave = torch.sin(3 * t).view(-1, 1, 1, 1) + (cond["returns"] * cond["keep"].view(-1, 1, 1))[:, None]
    return torch.tanh(0.5 * x + 0.3 * x.roll(1, 1) - 0.2 * x.roll(1, 2) + 0.4 * wave)


def run(case: str) -> torch.Tensor:
    """The sample of a case: (2, 4, 2, 3) float64, from fixed starting noise and fixed injected noise."""
    schedule_name, parametrization, solver, options = CASES[case]
    schedule = make_schedule(schedule_name, 50)
    sampler = Sampler(
        schedule, make_parametrization(parametrization, schedule), make_solver(solver, **options), [ClipX0(-2.0, 2.0)]
    )
    value = torch.linspace(-1, 1, 2 * 4 * 2 * 3, dtype=torch.float64).view(2, 4, 2, 3)
    returns = torch.tensor([0.2, 0.9, -0.5, 1.0], dtype=torch.float64).view(2, 2, 1)
    return sampler.sample(
        ClassifierFree(denoiser, 1.2),
        value.shape,
        steps=6,
        cond={"returns": returns},
        known=(value, (torch.arange(4) < 1).view(4, 1, 1)),
        temperature=0.5,
        generator=torch.Generator().manual_seed(0),
    ).x


def main() -> None:
    for case in CASES:
        (FOLDER / f"{case}.json").write_text(json.dumps({"case": case, "x": run(case).flatten().tolist()}) + "\n")


if __name__ == "__main__":
    main()
