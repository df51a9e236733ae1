"""Samples of every solver against frozen numbers; golden/make_goldens.py made them."""

import json

import pytest
import torch

from tests.diffusion.golden.make_goldens import CASES, FOLDER, run


@pytest.mark.parametrize("case", CASES)
def test_samples_are_the_frozen_ones(case):
    frozen = torch.tensor(json.loads((FOLDER / f"{case}.json").read_text())["x"], dtype=torch.float64)
    torch.testing.assert_close(run(case).flatten(), frozen, rtol=1e-8, atol=1e-9)
