"""How learning tests train: a method by its name and options, on given data, with the draws of the training loop."""

import torch

from madiff import build
from madiff.experiment import seeding

CPU = torch.device("cpu")


def learnt(algo, spec, store, updates, /, enter=None, **options):
    """The learner after so many updates with seed 0; of options that are groups, such as a planner's critic, only the
    given ones change; enter: how copies of the environment are made, for learners that act while they learn."""
    section = {"name": algo, **build.method(algo).defaults}
    for key, value in options.items():
        section[key] = {**section[key], **value} if isinstance(value, dict) else value
    learner = build.make_learner(section, spec, CPU, seed=0)
    source = learner.batches(store)
    if enter is not None:
        learner.enter(enter)
    return taught(learner, source, updates)


def taught(learner, source, updates):
    """The learner after so many updates."""
    generator = torch.Generator()
    for update in range(updates):
        generator.manual_seed(seeding.derive(0, "train", update))
        learner.update(source.sample(generator), generator)
    return learner
