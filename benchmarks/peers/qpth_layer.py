"""qpth's batched interior point (OptNet's), as SafeDiffuser calls it: qpth_layer.py PROGRAMS.npz MODE THREADS.

Runs under the peer's own interpreter. MODE: forward, or backward for both passes. The check that Q is definite, one
eigenvalue problem per batch entry, is switched off: this is its fastest form.
"""

import json
import os
import sys
import time

answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)

import numpy as np  # noqa: E402
import torch  # noqa: E402
from qpth.qp import QPFunction  # noqa: E402


def main() -> None:
    path, mode, threads = sys.argv[1], sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(threads)
    data = np.load(path)
    G, h, q = (torch.as_tensor(data[k]).requires_grad_(mode == "backward") for k in ("G", "h", "q"))
    P = torch.eye(q.shape[-1], dtype=q.dtype).expand(len(q), -1, -1)
    none = torch.empty(0, dtype=q.dtype)
    solver = QPFunction(verbose=-1, check_Q_spd=False)

    def run() -> torch.Tensor:
        x = solver(P, q, G, h, none, none)
        if mode == "backward":
            torch.autograd.grad(x.sum(), (q, G, h))
        return x

    error = float((run().detach() - torch.as_tensor(data["x"])).abs().max())
    print(json.dumps({"qpth": "0.0.18", "peer torch": torch.__version__, "error": error}), file=answers, flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        run()
        print(json.dumps({"steps": len(q), "seconds": time.perf_counter() - start}), file=answers, flush=True)


if __name__ == "__main__":
    main()
