"""Several processes that train one learner, started by torchrun: who leads, what the others are told, what is divided.

Every process has the data and draws the same batch and the same noise. The first leads: it alone writes, evaluates and
talks, and the others make an update when they are told to. Of an update each computes its rows of the networks; what
comes out is whole in every process, so losses and gradients are those of one process but for the order of sums.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor
from torch.autograd.function import once_differentiable

from madiff.interfaces import UserError

PATIENCE = timedelta(days=1)  # for the first process's word: it may be evaluating
TIMEOUT = timedelta(minutes=10)  # for rows and gradients, which all compute at the same time


class Place(NamedTuple):
    """rank: of this process, 0 leads; count: processes in all; local: number among those of this machine."""

    rank: int = 0
    count: int = 1
    local: int = 0


def place() -> Place:
    """Where torchrun put this process; alone without torchrun."""
    if not (dist.is_available() and dist.is_torchelastic_launched()):
        return Place()
    return Place(*(int(os.environ[name]) for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK")))


class Dismissed(Exception):
    """The first process has ended and needs no others."""


class Lost(UserError):
    """Another process has ended before its time."""

    def __init__(self, rank: int) -> None:
        super().__init__(f"process {rank} cannot reach the others: one has ended", "torchrun",
                         "the same command with resume=auto, which goes on from the last checkpoint")  # fmt: skip


@dataclass(frozen=True)
class Processes:
    """The processes of one training; by default this one alone, which tells nobody anything.

    talk: the group by which the first is heard; work: the one that hands rows and gradients around.
    """

    rank: int = 0
    count: int = 1
    talk: Any = None
    work: Any = None

    @property
    def first(self) -> bool:
        return self.rank == 0

    def tell(self, message: Any) -> None:
        """Let all others hear a message, by the first process."""
        self._tell(False, message)

    def _tell(self, end: bool, message: Any = None) -> None:
        if self.count > 1:
            with self.reached():
                dist.broadcast_object_list([end, message], src=0, group=self.talk)

    def told(self) -> Any:
        """The next message, by all but the first; raises `Dismissed` when there will be no more."""
        heard = [True, None]
        with self.reached():
            dist.broadcast_object_list(heard, src=0, group=self.talk)
        end, message = heard
        if end:
            raise Dismissed
        return message

    def meet(self) -> None:
        """Wait until all have come here."""
        if self.count > 1:
            with self.reached():
                dist.barrier(group=self.talk)

    def compute(self, network: Callable[..., Tensor], given: Sequence[Any]) -> Tensor:
        """network(*given), of which this process computes its rows; all of it where not everyone would have a row.

        Backwards the whole gradient of the input is passed on; the weights get `count` times the part of theirs that
        comes from these rows, so that `average` makes the whole of it.
        """
        rows = {len(value) if value.ndim else 0 for value in tensors(given)}
        if len(rows) > 1 or min(rows) < self.count:
            return network(*given)
        share = Share(self, rows.pop())
        return Whole.apply(network(*(each(share.part, value) for value in given)), share)

    def average(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """The mean of every gradient over the processes; those computed whole are the same everywhere already."""
        if not gradients:
            return []
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        with self.reached():
            dist.all_reduce(flat, group=self.work)
        parts = flat.div_(self.count).split([gradient.numel() for gradient in gradients])
        return [part.view_as(gradient) for part, gradient in zip(parts, gradients, strict=True)]

    @contextmanager
    def reached(self) -> Iterator[None]:
        """For every exchange: an error in it means that another process is gone."""
        try:
            yield
        except RuntimeError as error:
            raise Lost(self.rank) from error


ALONE = Processes()


@contextmanager
def joined(device: torch.device) -> Iterator[Processes]:
    """This process among those that torchrun started, or by itself; device: where its rows and gradients live.

    When the first ends, for whatever reason, the others leave this block without an error at the next word they wait
    for. They do not listen to Ctrl-C and SIGTERM: the first does, and they take part in its last step.
    """
    rank, count, _ = place()
    if count == 1:
        yield ALONE
        return
    dist.init_process_group("gloo", timeout=PATIENCE)
    work = dist.new_group(backend="nccl" if device.type == "cuda" else "gloo", timeout=TIMEOUT)
    crew = Processes(rank, count, dist.group.WORLD, work)
    if not crew.first:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
    try:
        yield crew
    except Dismissed:
        pass
    finally:
        if crew.first:
            with suppress(Lost):
                crew._tell(True)
    dist.destroy_process_group()


class Share:
    """Which of `rows` rows are this process's; the processes' numbers of rows differ by one at most."""

    def __init__(self, crew: Processes, rows: int) -> None:
        least, more = divmod(rows, crew.count)
        self.crew, self.sizes = crew, [least + (rank < more) for rank in range(crew.count)]
        begin = sum(self.sizes[: crew.rank])
        self.mine = slice(begin, begin + self.sizes[crew.rank])

    def part(self, whole: Tensor) -> Tensor:
        return Rows.apply(whole, self) if whole.requires_grad else whole[self.mine]

    def gathered(self, part: Tensor) -> Tensor:
        """All rows, of every process's part."""
        missing = self.sizes[0] - len(part)
        padded = torch.cat([part, part.new_zeros(missing, *part.shape[1:])]) if missing else part.contiguous()
        parts = [torch.empty_like(padded) for _ in self.sizes]
        with self.crew.reached():
            dist.all_gather(parts, padded, group=self.crew.work)
        return torch.cat([found[:size] for found, size in zip(parts, self.sizes, strict=True)])


class Rows(torch.autograd.Function):
    """A whole tensor to this process's rows; backwards to the whole gradient, from every process's rows."""

    @staticmethod
    def forward(ctx: Any, whole: Tensor, share: Share) -> Tensor:
        ctx.share = share
        return whole[share.mine]

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return ctx.share.gathered(gradient) / ctx.share.crew.count, None


class Whole(torch.autograd.Function):
    """This process's rows to the whole tensor; backwards to the gradient of the rows, times the number of processes."""

    @staticmethod
    def forward(ctx: Any, part: Tensor, share: Share) -> Tensor:
        ctx.share = share
        return share.gathered(part)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        return gradient[ctx.share.mine] * ctx.share.crew.count, None


def tensors(given: Any) -> Iterator[Tensor]:
    """The tensors in nested sequences and mappings."""
    if isinstance(given, Tensor):
        yield given
    elif isinstance(given, Mapping | Sequence) and not isinstance(given, str):
        for value in given.values() if isinstance(given, Mapping) else given:
            yield from tensors(value)


def each(change: Callable[[Tensor], Tensor], given: Any) -> Any:
    """A tensor, or a mapping of tensors, with every tensor changed; anything else as it is."""
    if isinstance(given, Mapping):
        return {name: each(change, value) for name, value in given.items()}
    return change(given) if isinstance(given, Tensor) else given
