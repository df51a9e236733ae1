"""diffusers' DDIM over our own network, as its pipelines call it: diffusers_ddim.py PLAN.pt THREADS.

Runs under the peer's own interpreter. PLAN.pt holds the network's options and weights, what a plan is made of and the
plan that ours made of it. Both halves of classifier-free guidance are one forward, as in diffusers' pipelines; known
entries are written into the sample before every step.
"""

import json
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import diffusers  # noqa: E402
import torch  # noqa: E402
from diffusers import DDIMScheduler  # noqa: E402

from madiff.planners.denoisers import make_denoiser  # noqa: E402

PREDICTIONS = {"epsilon": "epsilon", "x0": "sample", "v": "v_prediction"}


def loop(told: dict) -> torch.Tensor:
    """Plans from the told noise."""
    scheduler, network = told["scheduler"], told["network"]
    scheduler.set_timesteps(told["steps"])
    value, known = told["value"], told["mask"].bool()
    count = len(value)
    keep = torch.cat([torch.ones(count), torch.zeros(count)])
    cond = {"returns": torch.cat([told["returns"], told["returns"]])[..., None], "keep": keep}
    x = told["temperature"] * scheduler.init_noise_sigma * told["noise"]
    for step in scheduler.timesteps:
        x = torch.where(known, value, x)
        t = ((step + 1) / scheduler.config.num_train_timesteps).expand(2 * count)
        conditional, unconditional = network(torch.cat([x, x]), t, cond).chunk(2)
        output = unconditional + told["weight"] * (conditional - unconditional)
        x = scheduler.step(output, step, x).prev_sample
    return torch.where(known, value, x)


def ready(path: str) -> dict:
    """What the file says, with the network and the scheduler it describes."""
    told = torch.load(path, weights_only=True)
    told["network"] = make_denoiser(SimpleNamespace(**told["options"]), *told["shape"], {"returns": 1}).eval()
    told["network"].load_state_dict(told["weights"])
    told["scheduler"] = DDIMScheduler(
        told["levels"], beta_schedule="squaredcos_cap_v2", prediction_type=PREDICTIONS[told["parametrization"]],
        clip_sample=True, timestep_spacing="trailing",
    )  # fmt: skip
    return told


def main() -> None:
    path, threads = sys.argv[1], int(sys.argv[2])
    torch.set_num_threads(threads)
    told = ready(path)
    with torch.no_grad():
        error = float((loop(told) - told["plan"]).abs().max())
        versions = {"diffusers": diffusers.__version__, "peer torch": torch.__version__, "error": error}
        print(json.dumps(versions), file=answers, flush=True)
        for _ in sys.stdin:
            start = time.perf_counter()
            loop(told)
            answer = {"steps": len(told["value"]), "seconds": time.perf_counter() - start}
            print(json.dumps(answer), file=answers, flush=True)


if __name__ == "__main__":
    main()
