"""Results as a benchmark of several tasks and methods leaves them, drawn at random around known means."""

import numpy as np

from madiff.benchmarking.aggregate import Results
from madiff.experiment.statistics import bootstrap_ci

TASKS = {"xor": (0.45, 1.0), "spread-medium": (160.0, 517.0), "3m-good": (2.6, 20.0), "3m-poor": (2.6, 20.0)}
SKILL = {"bc": 0.5, "ma-cql": 0.45, "omar": 0.55, "dom2": 0.65, "madiff-d": 0.7, "madiff-c": 0.8}
CONTINUOUS = ("spread-medium",)
SHIFTS = {"slow": 0.1, "crowded": 0.3}
SHARES = (0.05, 0.25, 1.0)


def results(seeds: int = 3, episodes: int = 40) -> Results:
    """omar has continuous tasks only; spread-medium has shifts; spread-mixed has shares of its data."""
    rng = np.random.default_rng(0)
    tasks = {name: task(name, shifts=SHIFTS if name == "spread-medium" else {}) for name in TASKS}
    tasks |= {f"spread-mixed-share{share:g}": task("spread-mixed", share=share) for share in SHARES}
    returns, records = {}, []
    for name, entry in tasks.items():
        zero, one = TASKS.get(name, TASKS["spread-medium"])
        for label, skill in SKILL.items():
            for seed in range(seeds):
                if label == "omar" and name not in CONTINUOUS and entry["share"] is None:
                    records.append(empty(name, label, seed))
                    continue
                skill_now = skill + 0.03 * rng.normal() - (0.2 * (1 - entry["share"]) if entry["share"] else 0)
                values = zero + (one - zero) * (skill_now + 0.15 * rng.normal(size=episodes))
                returns.setdefault((name, label, None), {})[seed] = tuple(values)
                for shift, lost in entry["shifts"].items():
                    less = (one - zero) * (lost + 0.05 * rng.normal(size=episodes))
                    returns.setdefault((name, label, shift), {})[seed] = tuple(values - less)
                records.append(finished(name, label, seed, values, zero))
    references = {name: reference(*TASKS.get(name, TASKS["spread-medium"])) for name in tasks}
    return Results(described(tasks, seeds), references, records, returns)


def described(tasks, seeds):
    return {
        "suite": "fake", "about": "Drawn at random.", "leaves_out": "everything", "same_for_all": "Nothing was tuned.",
        "reference": "bc", "baselines": ["bc", "ma-cql", "omar"], "seeds": seeds, "tasks": tasks,
        "methods": {label: {"about": ""} for label in SKILL}, "versions": {"python": "3"},
    }  # fmt: skip


def task(family, shifts=None, share=None):
    return {"about": "", "zero": "random", "one": "expert", "family": family, "share": share, "shifts": shifts or {}}


def reference(zero, one):
    measured = {"zero": ("random", zero), "one": ("expert", one)}
    ends = {end: {"quality": quality, "return_mean": value} for end, (quality, value) in measured.items()}
    return {**ends, "data": {"return_mean": (zero + one) / 2, "episodes": 100}}


def empty(name, label, seed):
    return {"task": name, "label": label, "seed": seed, "status": "does not fit", "metrics": {}, "command": "c",
            "reason": "omar needs continuous actions"}  # fmt: skip


def finished(name, label, seed, values, zero):
    mean = float(values.mean())
    curve = [[step, zero + (mean - zero) * (1 - np.exp(-step / 800))] for step in range(400, 4001, 400)]
    metrics = {
        "return_mean": mean, "return_ci95": bootstrap_ci(values, resamples=50), "plan_ms_batch1": 20.0,
        "behaviour_return_mean": mean * 0.9, "network_calls_per_decision": 5, "parameters": 123456,
    }  # fmt: skip
    return {"task": name, "label": label, "seed": seed, "status": "finished", "reason": None, "metrics": metrics,
            "updates": 4000, "seconds": 123.4, "flattened": label != "madiff-d", "curve": curve,
            "command": f"python -m madiff.train algo={label} seed={seed}"}  # fmt: skip
