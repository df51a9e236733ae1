"""JaxMARL's SMAX in its strongest form: vmapped over copies, steps scanned inside one jitted call.

Runs under the peer's own interpreter: smax.py MAP COPIES STEPS. Every step makes observations, world state, action
masks and reward and resets finished battles; all of them enter a checksum, so that none is optimised away.
"""

import json
import os
import sys
import time

# What the libraries print must not mix with the answers: it goes to stderr.
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
from jaxmarl import make  # noqa: E402
from jaxmarl.environments.smax import map_name_to_scenario  # noqa: E402


def build(scenario: str, copies: int, steps: int):
    env = make("HeuristicEnemySMAX", scenario=map_name_to_scenario(scenario))

    def one_copy(key, state):
        act_key, step_key = jax.random.split(key)
        masks = env.get_avail_actions(state)
        keys = jax.random.split(act_key, len(env.agents))
        actions = {
            agent: jax.random.categorical(k, jnp.where(masks[agent] > 0, 0.0, -jnp.inf))
            for agent, k in zip(env.agents, keys, strict=True)
        }
        observations, state, rewards, dones, _ = env.step(step_key, state, actions)
        checksum = sum(jnp.sum(o) for o in observations.values()) + sum(rewards.values()) + dones["__all__"]
        return state, checksum + sum(jnp.sum(m) for m in masks.values())

    def step(carry, _):
        key, states = carry
        key, subkey = jax.random.split(key)
        states, checksum = jax.vmap(one_copy)(jax.random.split(subkey, copies), states)
        return (key, states), checksum.sum()

    @jax.jit
    def chunk(key, states):
        (key, states), checksums = jax.lax.scan(step, (key, states), None, length=steps)
        return key, states, checksums.sum()

    return env, chunk


def main() -> None:
    scenario, copies, steps = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
    env, chunk = build(scenario, copies, steps)
    key = jax.random.PRNGKey(0)
    _, states = jax.jit(jax.vmap(env.reset))(jax.random.split(key, copies))
    for _ in range(2):  # the second call compiles once more, for the first one's output types
        key, states, checksum = jax.block_until_ready(chunk(key, states))
    import jaxmarl

    version = getattr(jaxmarl, "__version__", "0.2.0")
    print(json.dumps({"jaxmarl": version, "jax": jax.__version__}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        key, states, checksum = jax.block_until_ready(chunk(key, states))
        print(json.dumps({"steps": copies * steps, "seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
