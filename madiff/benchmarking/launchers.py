"""Where jobs run: processes of this machine, or jobs of a cluster through submitit; both only start, watch and stop.

What a job has to say is in its record file, so a launcher hands nothing back but whether the job has ended.
"""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from multiprocessing import forkserver
from multiprocessing.connection import wait
from pathlib import Path
from typing import Any, Protocol

from madiff.benchmarking.work import Job
from madiff.interfaces import UserError

GRACE = 60.0  # seconds to save what is being trained, after Ctrl-C
POLL = 0.5
THREAD_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


class Running(Protocol):
    """A job that has been started."""

    job: Job

    def ended(self) -> str | None:
        """In words how it ended; None while it runs."""
        ...

    def interrupt(self) -> None:
        """Ask it to save and end."""
        ...

    def kill(self) -> None: ...


class Launcher(Protocol):
    def start(self, job: Job) -> Running: ...

    def watch(self, running: Sequence[Running], seconds: float) -> None:
        """Wait until one of them may have ended, at most so many seconds."""
        ...


class Local:
    """Processes forked from a server that has imported everything, so that each starts at once and dies alone.

    The server starts with the first launcher: environments with workers of their own fork from the same one.
    """

    def __init__(self, threads: int) -> None:
        method = "forkserver" if "forkserver" in multiprocessing.get_all_start_methods() else "spawn"
        self.context = multiprocessing.get_context(method)
        # Libraries read these when they are loaded; torch is told by its own option besides.
        self.variables = dict.fromkeys(THREAD_VARIABLES, str(threads))
        if method == "forkserver":
            # torch imports its compiler when a run asks for determinism.
            self.context.set_forkserver_preload(["madiff.benchmarking.work", "torch._inductor"])
            with variables(self.variables):
                forkserver.ensure_running()

    def start(self, job: Job) -> LocalJob:
        process = self.context.Process(target=enter, args=(job,), name=job.name)
        with variables(self.variables):
            process.start()
        return LocalJob(job, process)

    def watch(self, running: Sequence[LocalJob], seconds: float) -> None:
        wait([each.process.sentinel for each in running], seconds)


class LocalJob:
    def __init__(self, job: Job, process: multiprocessing.Process) -> None:
        self.job, self.process = job, process

    def ended(self) -> str | None:
        if self.process.is_alive():
            return None
        code = self.process.exitcode
        how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
        return f"its process ended with {how} and without a result; it printed {self.job.log}"

    def interrupt(self) -> None:
        if self.process.is_alive():
            self.process.terminate()

    def kill(self) -> None:
        self.process.kill()
        self.process.join()


def enter(job: Job) -> None:
    """The whole life of a local job's process: a session of its own, its output in a file, ended by its parent's end.

    A terminal's Ctrl-C then reaches the benchmark alone, which asks each job once.
    """
    if hasattr(os, "setsid"):
        os.setsid()
    job.log.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(job.log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.dup2(log, 1)
    os.dup2(log, 2)
    # What is started in the background of a shell ignores Ctrl-C, so the signal to save and end is SIGTERM.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    threading.Thread(target=end_with_parent, daemon=True).start()
    try:
        job()
    except KeyboardInterrupt:
        sys.exit(130)


def end_with_parent() -> None:
    """Wait for the parent's end, then ask this process to save and end too."""
    multiprocessing.parent_process().join()
    os.kill(os.getpid(), signal.SIGTERM)


class Submitit:
    """Jobs of Slurm, or of submitit's local executor; a preempted job is queued again and goes on where it was."""

    def __init__(self, folder: Path, cluster: str | None, threads: int, options: Mapping[str, Any]) -> None:
        import submitit

        self.folder = folder
        try:
            self.executor = submitit.AutoExecutor(folder=folder, cluster=cluster)
            self.executor.update_parameters(
                name="madiff-benchmark", cpus_per_task=threads, timeout_min=24 * 60,
                **{f"slurm_{key}": value for key, value in options.items()},
            )  # fmt: skip
        except (NameError, RuntimeError, ValueError) as error:
            raise UserError(str(error), "slurm", "options of submitit.AutoExecutor, without 'slurm_'") from error

    def start(self, job: Job) -> SubmititJob:
        return SubmititJob(job, self.executor.submit(Requeued(job)), self.folder)

    def watch(self, running: Sequence[SubmititJob], seconds: float) -> None:
        """submitit asks Slurm about once a minute, whatever is asked here; the record tells earlier."""
        deadline = time.monotonic() + seconds
        while not any(each.ended() for each in running) and time.monotonic() < deadline:
            time.sleep(min(POLL, seconds))


class Requeued:
    """A job as submitit submits it: `checkpoint` is what it queues again after a preemption."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> None:
        self.job()

    def checkpoint(self) -> Any:
        import submitit

        return submitit.helpers.DelayedSubmission(self)


class SubmititJob:
    def __init__(self, job: Job, submitted: Any, folder: Path) -> None:
        self.job, self.submitted, self.folder = job, submitted, folder

    def ended(self) -> str | None:
        if not self.job.record.exists() and not self.submitted.done():
            return None
        return f"job {self.submitted.job_id} ended without a result; its output is in {self.folder}"

    def interrupt(self) -> None:
        self.submitted.cancel(check=False)

    def kill(self) -> None:
        self.submitted.cancel(check=False)


def stop(running: Sequence[Running], launcher: Launcher) -> None:
    """Ask all to save and end; those that have not after a while, or after another Ctrl-C, are killed."""
    for each in running:
        each.interrupt()
    deadline = time.monotonic() + GRACE
    try:
        while (left := [each for each in running if each.ended() is None]) and time.monotonic() < deadline:
            launcher.watch(left, POLL)
    except KeyboardInterrupt:
        pass
    for each in running:
        if each.ended() is None:
            each.kill()


@contextmanager
def variables(values: Mapping[str, str]) -> Iterator[None]:
    """Environment variables set for a while."""
    before = {key: os.environ.get(key) for key in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
