"""OMAR's fork of multiagent-particle-envs, one copy, one body at a time, in NumPy; written from its equations.

Bodies are dicts with place, velocity, size, mass 1, and what they are; nothing is shared with the tested code.
"""

import math

import numpy as np

PREDATOR = {"size": 0.075, "push": 9.0, "fastest": 1.0, "collides": True}
STILL = {
    "landmark": {"size": 0.05, "collides": False},
    "obstacle": {"size": 0.2, "collides": True},
    "food": {"size": 0.03, "collides": False},
    "forest": {"size": 0.3, "collides": False},
}
WORLDS = {
    "spread": ({"size": 0.15, "push": 5.0, "fastest": None, "collides": True}, None, ["landmark"] * 3),
    "multimodal": ({"size": 0.05, "push": 5.0, "fastest": None, "collides": True}, None, ["landmark"] * 3),
    "tag": (PREDATOR, {"size": 0.05, "push": 16.0, "fastest": 1.3, "collides": True}, ["obstacle"] * 2),
    "world": (
        PREDATOR, {"size": 0.045, "push": 16.0, "fastest": 1.3, "collides": True},
        ["obstacle", "food", "food", "forest", "forest"],
    ),
}  # fmt: skip


def world(scenario, places, velocities, agents=3):
    """The movers (agents, then the prey) and what stands still, at these places."""
    agent, prey, still = WORLDS[scenario]
    if prey is None:
        still = still[:1] * agents
    movers = [dict(agent) for _ in range(agents)] + ([dict(prey)] if prey else [])
    fixed = [dict(STILL[kind], kind=kind) for kind in still]
    for body, place in zip(movers + fixed, places, strict=True):
        body["place"] = np.array(place, np.float64)
    for body, velocity in zip(movers, velocities, strict=True):
        body["velocity"] = np.array(velocity, np.float64)
    return movers, fixed


def distance(a, b):
    return math.hypot(*(a["place"] - b["place"]))


def touch(a, b):
    return distance(a, b) < a["size"] + b["size"]


def advance(movers, fixed, actions):
    """One step of 0.1: forces from the places before, then velocities, then places."""
    forces = [mover["push"] * np.asarray(action, np.float64) for mover, action in zip(movers, actions, strict=True)]
    everything = movers + fixed
    for i, a in enumerate(everything):
        for j in range(i + 1, len(everything)):
            b = everything[j]
            if not (a["collides"] and b["collides"]) or i >= len(movers):
                continue
            gap = distance(a, b) - a["size"] - b["size"]
            strength = 100 * np.logaddexp(0.0, -gap / 1e-3) * 1e-3
            push = strength * (a["place"] - b["place"]) / distance(a, b)
            forces[i] = forces[i] + push
            if j < len(movers):
                forces[j] = forces[j] - push
    for mover, force in zip(movers, forces, strict=True):
        velocity = mover["velocity"] * 0.75 + force * 0.1
        speed = math.hypot(*velocity)
        if mover["fastest"] is not None and speed > mover["fastest"]:
            velocity = velocity / speed * mover["fastest"]
        mover["velocity"] = velocity
        mover["place"] = mover["place"] + velocity * 0.1


def observation(scenario, i, movers, fixed):
    """What the i-th mover sees."""
    me = movers[i]
    others = [mover for mover in movers if mover is not me]
    seen = [me["velocity"], me["place"]]
    seen += [body["place"] - me["place"] for body in fixed]
    seen += [other["place"] - me["place"] for other in others]
    if scenario in ("spread", "multimodal"):
        seen += [np.zeros(2) for _ in others]
    elif i < len(movers) - 1:
        seen.append(movers[-1]["velocity"])
    if scenario == "world":
        seen.append([1.0 if touch(me, body) else -1.0 for body in fixed if body["kind"] == "forest"])
    return np.concatenate(seen)


def rewards(scenario, movers, fixed):
    """What each agent is paid."""
    if scenario in ("spread", "multimodal"):
        shared = sum(min(1 / min(distance(mover, body) for mover in movers), 10.0) for body in fixed)
        return [shared - 5 * sum(touch(me, other) for other in movers if other is not me) for me in movers]
    *predators, prey = movers
    each = 10 if scenario == "tag" else 5
    paid = sum(each * touch(predator, prey) - 0.1 * distance(predator, prey) for predator in predators)
    return [paid] * len(predators)


def prey_action(weights, seen):
    """The trained prey: batch normalisation by running statistics, two layers of ReLU, tanh."""
    x = (seen - weights["in_fn.running_mean"]) / np.sqrt(weights["in_fn.running_var"] + 1e-5)
    x = x * weights["in_fn.weight"] + weights["in_fn.bias"]
    for layer in ("fc1", "fc2"):
        x = np.maximum(weights[f"{layer}.weight"] @ x + weights[f"{layer}.bias"], 0)
    return np.tanh(weights["fc3.weight"] @ x + weights["fc3.bias"])
