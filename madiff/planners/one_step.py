"""A student that plans in one network call: it learns, beside its teacher, what the sampler makes of the same noise."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from madiff.diffusion.ema import EMA
from madiff.diffusion.objective import distillation_loss
from madiff.diffusion.parametrization import Parametrization
from madiff.diffusion.schedule import Schedule
from madiff.diffusion.training import GradientLearner
from madiff.planners.madiff_policy import MADiffPolicy

DECAY = 0.98  # of the average that acts: the student has a quarter of the teacher's updates, or fewer


class OneStep(GradientLearner):
    """Learner of the student, whose network has the teacher's shape and begins with the teacher's weights.

    Guidance, temperature and return asked for are those that the teacher acts with while the student learns.
    """

    def __init__(
        self, denoiser: nn.Module, schedule: Schedule, parametrization: Parametrization, learning_rate: float,
        gradient_clip: float,
    ) -> None:  # fmt: skip
        self.student = copy.deepcopy(denoiser)
        self.schedule, self.parametrization, self.gradient_clip = schedule, parametrization, gradient_clip
        super().__init__(
            self.student, nn.Module(),
            torch.optim.Adam(self.student.parameters(), lr=learning_rate, fused=True),
            EMA(self.student, DECAY, every=1, start=0),
        )  # fmt: skip

    def update(
        self, teacher: MADiffPolicy, history: Tensor, ego: Tensor, target: Tensor, generator: torch.Generator
    ) -> dict[str, Tensor]:
        """One step towards the teacher's plans for encoded histories (B, history + 1, agent, F).

        ego (B,) and target (B, agent) as `MADiffPolicy.plan` takes them.
        """
        if not self.updates:
            self.student.load_state_dict(teacher.denoiser.denoiser.state_dict())
        length = history.shape[1] + teacher.config.horizon
        noise = torch.randn(
            (len(history), length, *history.shape[2:]), generator=generator, device=generator.device
        ).to(history.device)  # fmt: skip
        teacher.generator = generator
        with torch.no_grad():
            plans = teacher.plan(history, ego, noise, target)
        loss = distillation_loss(
            self.student, plans, noise, {"returns": target[..., None], "keep": target.new_ones(len(target))},
            schedule=self.schedule, parametrization=self.parametrization, temperature=teacher.config.temperature,
            known_mask=teacher.known(history, ego)[1],
        )  # fmt: skip
        self.gradient_step(loss, self.gradient_clip)
        return {"distillation_loss": loss.detach()}
