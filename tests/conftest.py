"""Every test runs on one thread, so that timings of the suite do not depend on the machine's load."""

import torch

torch.set_num_threads(1)
