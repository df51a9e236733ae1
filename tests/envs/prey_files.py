"""Preys of random weights in the layout of OMAR's files."""

import torch


def policy(features, seed=0):
    """The policy's tensors by name, its normalisation far from the identity."""
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape):
        return torch.randn(*shape, generator=generator)

    return {
        "in_fn.weight": 1 + 0.3 * normal(features),
        "in_fn.bias": 0.3 * normal(features),
        "in_fn.running_mean": 0.5 * normal(features),
        "in_fn.running_var": 0.2 + normal(features).square(),
        "in_fn.num_batches_tracked": torch.tensor(490),
        "fc1.weight": 0.3 * normal(64, features),
        "fc1.bias": 0.1 * normal(64),
        "fc2.weight": 0.2 * normal(64, 64),
        "fc2.bias": 0.1 * normal(64),
        "fc3.weight": 0.2 * normal(2, 64),
        "fc3.bias": 0.1 * normal(2),
    }


def saved(path, features, seed=0):
    """Write a file whose last agent is the prey; the predators before it are larger."""
    predator = policy(features + 2, seed + 1)
    agents = [{"policy": predator}] * 3 + [{"policy": policy(features, seed)}]
    torch.save({"init_dict": {"gamma": 0.95}, "agent_params": agents}, path)
    return str(path)
