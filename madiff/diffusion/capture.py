"""Whole sampling loops as recordings of the device's work (CUDA graphs), run again without any Python in between.

One rule decides what runs as it stands instead: a loop is recorded when it is asked for once more than `PATIENCE`
times with the same objects, numbers, shapes and types, while there are fewer than `MOST` recordings of its sampler, if
no gradient is asked for, no other process takes part, all its tensors and its generator are on the device, and every
hook is `capturable`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Any, TypeVar, cast
from weakref import WeakKeyDictionary, ref

import torch
from torch import Tensor

from madiff.diffusion import computing, sharing

PATIENCE = 2
MOST = 32
WARM_UPS = 2  # runs before a recording, in which libraries and allocators set themselves up

Run = Callable[[], Any]
Record = Callable[[Run, list[torch.Generator]], tuple[Any, Callable[[], None]]]
LoopT = TypeVar("LoopT", bound=Callable[..., Any])


def recordable(loop: LoopT) -> LoopT:
    """The method loop(self, denoiser, shape, **given), run from a recording where one is made; `self.hooks` take part.

    What it gives is nested tensors. It may draw from a generator that it is given, and from no other.
    """

    @wraps(loop)
    def run(owner: Any, denoiser: Any, shape: Any, **given: Any) -> Any:
        recorder = computing.recorder()
        if recorder is None:
            return loop(owner, denoiser, shape, **given)
        return recorder.run(loop, owner, {"denoiser": denoiser, "shape": tuple(shape), **given})

    return cast(LoopT, run)


class CudaGraph:
    """Records on the current CUDA device; all recordings share one pool of memory, since they never run at once."""

    def __init__(self) -> None:
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, run: Run, generators: list[torch.Generator]) -> tuple[Any, Callable[[], None]]:
        beside, now = torch.cuda.Stream(), torch.cuda.current_stream()
        beside.wait_stream(now)
        with torch.cuda.stream(beside):
            for _ in range(WARM_UPS):
                run()
        now.wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        for generator in generators:
            graph.register_generator_state(generator)
        with torch.cuda.graph(graph, pool=self.pool):
            outcome = run()
        return outcome, graph.replay


class Recording:
    """One loop with the buffers it reads: every run copies in what it is given, and out what came of it."""

    def __init__(self, loop: Callable[..., Any], owner: Any, given: Mapping[str, Any], record: Record) -> None:
        with torch.inference_mode(False):  # buffers are written to, whatever mode the first caller is in
            self.buffers = changed(given, own_tensor, own_generator)
        self.generators = [leaf for leaf in leaves(self.buffers) if isinstance(leaf, torch.Generator)]
        alive, buffers = ref(owner), self.buffers  # a recording goes when its owner does
        self.outcome, self.replay = record(lambda: loop(alive(), **buffers), self.generators)

    def run(self, given: Mapping[str, Any]) -> Any:
        pairs = list(zip(leaves(self.buffers), leaves(given), strict=True))
        for mine, theirs in pairs:
            if isinstance(mine, Tensor):
                mine.copy_(theirs)
            else:
                mine.set_state(theirs.get_state())
        self.replay()
        for mine, theirs in pairs:
            if isinstance(mine, torch.Generator):
                theirs.set_state(mine.get_state())
        return changed(self.outcome, torch.clone, lambda generator: generator)


class Recorder:
    """Keeps the recordings of every sampler for as long as that lives.

    record(run, generators): run once, drawing from these generators, and give what came of it together with what does
    the same again in place, from the values that the inputs and the generators' states then have. device: the kind of
    device that it works on.
    """

    def __init__(self, record: Record | None = None, device: str = "cuda") -> None:
        self.record, self.device = record or CudaGraph(), device
        self.kept: WeakKeyDictionary[Any, Kept] = WeakKeyDictionary()

    def run(self, loop: Callable[..., Any], owner: Any, given: Mapping[str, Any]) -> Any:
        key = self.key(owner, given)
        if key is None:
            return loop(owner, **given)
        kept = self.kept.setdefault(owner, Kept({}, {}))
        if key not in kept.recordings:
            if not kept.wanted(key):
                return loop(owner, **given)
            kept.recordings[key] = Recording(loop, owner, given, self.record)
        return kept.recordings[key].run(given)

    def key(self, owner: Any, given: Mapping[str, Any]) -> Any:
        """What must be the same for a recording to do; None for a loop that must run as it stands."""
        if torch.is_grad_enabled() or sharing.shared():
            return None
        if not all(getattr(hook, "capturable", False) for hook in owner.hooks):
            return None
        if any(leaf.device.type != self.device for leaf in leaves(given)):
            return None
        try:
            key = (tuple(owner.hooks), signature(given), torch.is_inference_mode_enabled())
            hash(key)
        except TypeError:  # something is neither a tensor nor a number nor an object known by itself
            return None
        return key


@dataclass
class Kept:
    """What is known of one sampler: its recordings, and how often others were asked for."""

    recordings: dict[Any, Recording]
    asked: dict[Any, int]

    def wanted(self, key: Any) -> bool:
        """Count one more request; whether it is time for a recording. The oldest counts give way to new ones."""
        count = self.asked.pop(key, 0)
        if len(self.recordings) >= MOST:
            return False
        if count >= PATIENCE:
            return True
        self.asked[key] = count + 1
        if len(self.asked) > MOST:
            del self.asked[next(iter(self.asked))]
        return False


def leaves(tree: Any) -> Iterator[Any]:
    """The tensors and generators of nested mappings and sequences, in order."""
    if isinstance(tree, Tensor | torch.Generator):
        yield tree
    elif isinstance(tree, Mapping):
        for name in sorted(tree):
            yield from leaves(tree[name])
    elif isinstance(tree, list | tuple):
        for value in tree:
            yield from leaves(value)


def changed(tree: Any, of_tensor: Callable[[Tensor], Any], of_generator: Callable[[torch.Generator], Any]) -> Any:
    """The same nest with its tensors and generators changed; everything else as it is."""
    if isinstance(tree, Tensor):
        return of_tensor(tree)
    if isinstance(tree, torch.Generator):
        return of_generator(tree)
    if isinstance(tree, Mapping):
        return {name: changed(value, of_tensor, of_generator) for name, value in tree.items()}
    if isinstance(tree, list | tuple):
        values = [changed(value, of_tensor, of_generator) for value in tree]
        return type(tree)(*values) if hasattr(tree, "_fields") else type(tree)(values)
    return tree


def signature(tree: Any) -> Any:
    """A nest without the values of its tensors: their shapes and types, and everything else as it is."""
    if isinstance(tree, Tensor):
        return tree.shape, tree.dtype, tree.device
    if isinstance(tree, torch.Generator):
        return "generator", tree.device
    if isinstance(tree, Mapping):
        return tuple((name, signature(tree[name])) for name in sorted(tree))
    if isinstance(tree, list | tuple):
        return type(tree), tuple(map(signature, tree))
    return type(tree), tree  # 1, 1.0 and True are equal and not the same


def own_tensor(tensor: Tensor) -> Tensor:
    return tensor.clone(memory_format=torch.contiguous_format)


def own_generator(generator: torch.Generator) -> torch.Generator:
    return torch.Generator(generator.device)
