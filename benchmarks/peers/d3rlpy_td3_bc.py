"""d3rlpy's TD3+BC, as its own training loop calls it: d3rlpy_td3_bc.py EPISODES.npz BATCH UPDATES THREADS.

Runs under the peer's own interpreter. A chunk is UPDATES times a batch drawn from its replay buffer and one update of
its defaults, which are the paper's: two hidden layers of 256, twin critics, the actor at every second update.
"""

import json
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import d3rlpy  # noqa: E402
import numpy as np  # noqa: E402
import torch  # noqa: E402


def main() -> None:
    path, batch, updates, threads = sys.argv[1], *map(int, sys.argv[2:])
    torch.set_num_threads(threads)
    data = np.load(path)
    names = ("observations", "actions", "rewards", "terminals", "timeouts")
    dataset = d3rlpy.dataset.MDPDataset(*(data[name] for name in names))
    algo = d3rlpy.algos.TD3PlusBCConfig(batch_size=batch).create(device="cpu:0")
    algo.build_with_dataset(dataset)

    def chunk() -> None:
        for _ in range(updates):
            algo.update(dataset.sample_transition_batch(batch))

    chunk()
    versions = {"d3rlpy": d3rlpy.__version__, "peer torch": torch.__version__}
    print(json.dumps(versions), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        chunk()
        print(json.dumps({"steps": updates, "seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
