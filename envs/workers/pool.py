"""The shares of an environment's copies: one in this process, or each in a worker process of its own.

A worker never outlives its pool: it ends when its pipe does, which the pool closes when it is closed or collected or
the interpreter exits, and when its parent has died. Workers ignore Ctrl-C, which is the parent's to handle.
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import traceback
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing.connection import Connection
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch

from madiff.interfaces import UserError

from .share import Make, Share

PATIENCE_SECONDS = 2.0


class Failure(NamedTuple):
    """What a worker says instead of an answer: one line, and the traceback."""

    line: str
    trace: str


def described(error: BaseException) -> str:
    """An exception as one line."""
    return str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}".rstrip(": ")


def serve(pipe: Connection, make: Make, copies: int, limit: int | None) -> None:
    """The life of a worker: answer commands until the pipe ends."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=follow_parent, daemon=True).start()
    torch.set_num_threads(1)
    share = None
    while True:
        try:
            command, arguments = pipe.recv()
        except (EOFError, OSError):
            break
        try:
            share = share or Share(make, copies, limit)
            answer = getattr(share, command)(*arguments)
        except Exception as error:
            answer = Failure(described(error), traceback.format_exc())
        try:
            pipe.send(answer)
        except OSError:
            break
    if share is not None:
        share.close()


def follow_parent() -> None:
    """End this process with its parent, also in the middle of a step."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


class Pool:
    """All copies in `workers` processes, or in this one if that is 0; in order, in shares as even as they can be."""

    def __init__(
        self, name: str, make: Make, copies: int, workers: int, limit: int | None, preload: Sequence[str]
    ) -> None:
        self.name = name
        self.sizes = [len(part) for part in np.array_split(np.arange(copies), max(workers, 1))]
        self.share: Share | None = None
        self.pipes: list[Connection] = []
        self.processes: list[Any] = []
        self._finish = weakref.finalize(self, finish, self.pipes, self.processes)
        if workers == 0:
            self.share = self._here(lambda: Share(make, copies, limit))
            return
        try:
            self._start(make, limit, preload)
        except (OSError, EOFError, AttributeError, pickle.PicklingError) as error:
            self.close()
            allowed = "0 for none; an environment made by a function of an importable module"
            raise UserError(f"worker processes cannot start ({described(error)})", "workers", allowed) from error

    def _start(self, make: Make, limit: int | None, preload: Sequence[str]) -> None:
        context: Any = multiprocessing.get_context(start_method())
        if start_method() == "forkserver":
            context.set_forkserver_preload([__name__, *preload])
        for size in self.sizes:
            ours, theirs = context.Pipe()
            self.pipes.append(ours)
            worker = context.Process(target=serve, args=(theirs, make, size, limit), daemon=True, name=self.name)
            with without_main():
                worker.start()
            theirs.close()
            self.processes.append(worker)

    def ask(self, command: str, arguments: Mapping[int, Sequence[Any]]) -> list[Any]:
        """The answers of some shares, by number, to a command with arguments for each; a failure closes the pool.

        Raises UserError, with the worker's traceback as its cause.
        """
        if self.share is not None:
            share = self.share
            return [self._here(lambda: getattr(share, command)(*arguments[0]))]
        if not self.pipes:
            raise UserError("is closed", self.name, "a new environment")
        answers = self._exchange(command, arguments)
        if failed := [answer for answer in answers if isinstance(answer, Failure)]:
            self.close()
            raise UserError(failed[0].line, self.name) from RuntimeError(failed[0].trace)
        return answers

    def ask_all(self, command: str, *arguments: Sequence[Any] | np.ndarray) -> list[Any]:
        """Every share's answer to a command whose arguments have one entry per copy."""
        ends = np.cumsum([0, *self.sizes])
        return self.ask(command, {k: [a[ends[k] : ends[k + 1]] for a in arguments] for k in range(len(self.sizes))})

    def whereabouts(self, copy: int) -> tuple[int, int]:
        """The share a copy belongs to, and its place there."""
        ends = np.cumsum(self.sizes)
        share = int(np.searchsorted(ends, copy, side="right"))
        return share, copy - int(ends[share] - self.sizes[share])

    def _exchange(self, command: str, arguments: Mapping[int, Sequence[Any]]) -> list[Any]:
        at, answers = 0, []
        try:
            for at, given in arguments.items():
                self.pipes[at].send((command, given))
            for at in arguments:
                answers.append(self.pipes[at].recv())
        except (EOFError, OSError):
            dead = self.processes[at]
            dead.join(PATIENCE_SECONDS)
            self.close()
            raise UserError(f"a worker process died in {command} (exit code {dead.exitcode})", self.name) from None
        except BaseException:
            # After Ctrl-C answers may be under way that would be taken for those of the next command.
            self.close()
            raise
        return answers

    def _here(self, command: Callable[[], Any]) -> Any:
        try:
            return command()
        except Exception as error:
            raise UserError(described(error), self.name) from error

    def close(self) -> None:
        """End the workers; close the environments of this process."""
        self._finish()
        if self.share is not None:
            self.share.close()


def finish(pipes: list[Connection], processes: list[Any]) -> None:
    """Close the pipes, at which workers end by themselves; those that do not are made to."""
    for pipe in pipes:
        pipe.close()
    pipes.clear()
    deadline = time.monotonic() + PATIENCE_SECONDS
    for end in (lambda worker: None, lambda worker: worker.terminate(), lambda worker: worker.kill()):
        for worker in processes:
            if worker.is_alive():
                end(worker)
        for worker in processes:
            worker.join(max(deadline - time.monotonic(), 0.1))


def start_method() -> str:
    """The one with which a worker neither inherits our threads and pipes nor takes long to begin."""
    return "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"


@contextmanager
def without_main() -> Iterator[None]:
    """Let a new process know nothing of our `__main__`, which it would run again: scripts then need no guard."""
    main = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main


def default_workers(copies: int) -> int:
    """None for one copy, and where this process may have no children; else one for each processor and copy."""
    if copies == 1 or multiprocessing.current_process().daemon:
        return 0
    return min(copies, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
