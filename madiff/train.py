"""python -m madiff.train: train a method on offline data; compare it with baselines and the data's behaviour."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from madiff import build, configuration, guarding, hardware, safeguards
from madiff.assessment import Assessment, assess, assess_behaviour
from madiff.build import Problem, TrainedRun
from madiff.data.store import EpisodeStore
from madiff.diffusion import sharing
from madiff.experiment import loop, plots, processes, rendering, rollout, seeding
from madiff.experiment.loop import FitReport, fit
from madiff.experiment.processes import ALONE, Processes
from madiff.experiment.run_directory import RunDirectory
from madiff.experiment.summary import Summary, evaluation_metrics, print_table
from madiff.experiment.tracking import make_tracker
from madiff.interfaces import BatchSource, Learner, Online, UserError
from madiff.schema import TrainConfig, plain

console = Console()
say = partial(console.print, markup=False, highlight=False, soft_wrap=True)


def main(arguments: Sequence[str] | None = None) -> int:
    return configuration.main(VERB, build.defaults, sys.argv[1:] if arguments is None else arguments)


def train(config: TrainConfig) -> None:
    """The whole job, by this process or as one of those that torchrun started."""
    told = say if processes.place().rank == 0 else None
    device = hardware.setup(config.hardware, told, together=True).device
    with processes.joined(device) as crew:
        (lead if crew.first else assist)(config, device, crew)


def lead(config: TrainConfig, device: torch.device, crew: Processes) -> None:
    """What the first process does; everything that can be wrong with `config` is found before the run directory is."""
    problem = build.make_problem(config.env, config.agents, config.scenario, device)
    job = Job(config, problem, device, crew)
    learners = job.learners()
    build.check_divisible(job.algo, learners[job.algo], problem.spec, device, crew.count)
    if line := hardware.unheeded(config.hardware, learners[job.algo], job.algo):
        say(line)
    guarding.check(learners[job.algo], config.safe, problem.spec)
    read = build.make_store(config.data, problem)
    path = config.run_dir or job.default_path
    with RunDirectory.open(path, plain(config), job.identity(job.algo), config.resume) as run:
        if run.finished(job.steps(job.algo)):
            say(f"{path} is finished ({run.summary()['steps']} updates): nothing to do")
            return
        guarding.keep(config.safe, run.path)
        store = read()
        say(data_line(store))
        if crew.count > 1:
            say(f"processes: {crew.count}, which divide the rows of every batch")
        crew.tell(store.card["sha256"])
        crew.meet()
        reports = {name: job.fit(name, learner, store, run) for name, learner in learners.items()}
        job.compare(learners, reports, store, run)
        say(f"written to {path}")


def assist(config: TrainConfig, device: torch.device, crew: Processes) -> None:
    """What any other process does once the first has found all well: updates, then wait for the first's end."""
    data = crew.told()
    job = Job(config, build.make_problem(config.env, config.agents, config.scenario, device), device, crew)
    store = build.make_store(config.data, job.problem)()
    if store.card["sha256"] != data:
        raise UserError(f"process {crew.rank} has other data than the first", "data", "the same data for all processes")
    crew.meet()
    for name, learner in job.learners().items():
        job.assist(name, learner, store)
    crew.told()


@dataclass(frozen=True)
class Job:
    """One training: its method and the baselines beside it, all by name."""

    config: TrainConfig
    problem: Problem
    device: torch.device
    crew: Processes = ALONE

    @property
    def algo(self) -> str:
        return self.config.algo["name"]

    @property
    def methods(self) -> list[str]:
        """The method first, then its baselines; one that is asked for twice is trained once."""
        for name in self.config.train.baselines:
            build.method(name, "train.baselines")
        return list(dict.fromkeys([self.algo, *self.config.train.baselines]))

    @property
    def data_name(self) -> str:
        data = self.config.data
        return data.quality if data.path is None else data.path.stem

    @property
    def default_path(self) -> Path:
        spec = self.problem.spec
        safe = "" if self.config.safe["name"] == "none" else f"safe-{self.config.safe['name']}-"
        name = f"{spec.name}-{spec.scenario}-{self.algo}-{self.data_name}-{safe}seed{self.config.seed}"
        return Path("runs") / name

    def section(self, name: str) -> dict[str, Any]:
        """The configuration of a method: as given for the trained one, its own defaults for a baseline."""
        return dict(self.config.algo) if name == self.algo else {"name": name, **build.method(name).defaults}

    def safe(self, name: str) -> dict[str, Any]:
        """What a method is trained through: a baseline through nothing."""
        return dict(self.config.safe) if name == self.algo else {"name": "none", "constraints": None}

    @property
    def layer(self) -> dict[str, Any]:
        """What summary.json says of the layer, where there is one."""
        return {} if self.config.safe["name"] == "none" else {"safe": plain(self.config.safe)}

    def steps(self, name: str) -> int:
        return self.config.train.steps or self.section(name)["steps"]

    def identity(self, name: str) -> dict[str, Any]:
        """What a run must share with the one whose directory it continues: all but lengths, rhythms and places."""
        spec, data = self.problem.spec, plain(self.config.data)
        data["path"] = data["path"] and str(Path(data["path"]).absolute())
        options = {f"algo.{key}": value for key, value in self.section(name).items() if key not in ("name", "steps")}
        where = {f"data.{key}": value for key, value in data.items() if key not in ("cache", "format")}
        given = {"env": spec.name, "scenario": spec.scenario, "algo": name, "seed": self.config.seed}
        env = {f"env.{key}": value for key, value in plain(spec.options).items()}
        return given | options | where | env | guarding.identity(self.safe(name))

    def learner(self, name: str) -> Learner:
        section = {**self.section(name), "steps": self.steps(name)}  # shares of the updates are of these
        return build.make_learner(section, self.problem.spec, self.device, self.config.seed)

    def learners(self) -> dict[str, Learner]:
        """All that is trained, in order."""
        return {name: self.learner(name) for name in self.methods}

    def fit(self, name: str, learner: Learner, store: EpisodeStore, run: RunDirectory) -> FitReport:
        """Train one method: the run's own in its directory, a baseline in one below."""
        if name == self.algo:
            return self._fit(name, learner, store, run)
        config = plain(replace(self.config, algo=self.section(name), safe=self.safe(name)))
        with RunDirectory.open(run.path / "baselines" / name, config, self.identity(name), "auto") as below:
            return self._fit(name, learner, store, below)

    def _fit(self, name: str, learner: Learner, store: EpisodeStore, run: RunDirectory) -> FitReport:
        train, steps, source = self.config.train, self.steps(name), self.prepare(name, learner, store)
        mode = self.config.tracking if name == self.algo else "none"
        tracker = make_tracker(mode, run.path, run.config, run.path.name)
        try:
            return fit(
                learner, source, run, steps=steps, seed=self.config.seed, log_every=train.log_every,
                checkpoint_every=train.checkpoint_every, evaluate_every=train.evaluate_every or max(1, steps // 10),
                evaluate=lambda step: self.point(learner), tracker=tracker, title=name, device=self.device,
                metadata={"spec": plain(asdict(self.problem.spec)), "costs": bool(store.costs.any())}, console=console,
                crew=self.crew, together=self.together,
            )  # fmt: skip
        finally:
            if tracker is not None:
                tracker.finish()

    def assist(self, name: str, learner: Learner, store: EpisodeStore) -> None:
        """Take part in the training of one method that the first process leads."""
        source = self.prepare(name, learner, store)
        loop.assist(learner, source, self.crew, seed=self.config.seed, device=self.device, together=self.together)

    def prepare(self, name: str, learner: Learner, store: EpisodeStore) -> BatchSource:
        """The learner's batches; it is given besides what it acts through and in."""
        source = learner.batches(store)
        guarding.put(learner, self.safe(name), self.problem.spec)
        if isinstance(learner, Online):
            learner.enter(self.problem.make)
        return source

    def together(self) -> AbstractContextManager[None]:
        """What updates are made in: nothing, or all processes sharing the work."""
        return sharing.among(self.crew if self.crew.count > 1 else None)

    def point(self, learner: Learner) -> dict[str, float]:
        """One point of the learning curve: the same few episodes every time; nothing where none can be played."""
        if not self.problem.playable:
            return {}
        seed = seeding.derive(self.config.seed, "learning curve")
        episodes = self.config.train.evaluate_episodes
        return evaluation_metrics(rollout.evaluate(self.problem.make, learner.policy(), episodes, seed))

    def compare(
        self, learners: dict[str, Learner], reports: dict[str, FitReport], store: EpisodeStore, run: RunDirectory
    ) -> None:
        """Evaluate everything on the same episodes and write what the run has to say; summary.json comes last."""
        episodes, seed = self.config.evaluation.episodes, self.config.evaluation.seed
        film = self.config.evaluation.film
        costs = bool(store.costs.any())
        results = [
            self.assess(self.trained(name, learner, reports[name].steps, costs, run.path), film)
            for name, learner in learners.items()
        ]
        if self.config.data.path is None:
            results.append(assess_behaviour(self.problem, self.config.data.quality, episodes, seed, costs))
        rollout.write_episodes(run.path / "episodes.jsonl", [record for result in results for record in result.records])
        summary = self.summary({result.name: result for result in results}, reports[self.algo], store).to_json()
        self.draw(summary, results[0], run)
        run.write_json("summary.json", summary)
        print_table(summary, console)

    def trained(self, name: str, learner: Learner, step: int, costs: bool, path: Path) -> TrainedRun:
        """A method as madiff.evaluate would read it back."""
        config = replace(self.config, algo=self.section(name), safe=self.safe(name))
        return TrainedRun(path, config, self.problem.spec, step, learner.policy(), costs, learner)

    def assess(self, run: TrainedRun, film: bool) -> Assessment:
        """A method over the common episodes, with what its plans and episodes violated where there are constraints."""
        name, evaluation = run.config.algo["name"], self.config.evaluation
        guarded = safeguards.safeguard(run, AS_TRAINED)
        found = assess(
            name, self.problem, guarded.policy, evaluation.episodes, evaluation.seed, run.costs,
            film=name == self.algo and film, record=bool(guarded.sets), timed=guarded.timed,
        )  # fmt: skip
        safety = guarded.report(found.store, found.records)
        return replace(found, row=found.row | {key: safety[key] for key in VIOLATIONS if key in safety})

    def summary(self, results: dict[str, Assessment], report: FitReport, store: EpisodeStore) -> Summary:
        """Behaviour is the policy that made the data where it can be asked, and the data's own mean where not."""
        row, spec = dict(results[self.algo].row), self.problem.spec
        data_mean = float(store.team_returns().mean())
        behaviour = results["behaviour"].row if "behaviour" in results else {"return_mean": data_mean}
        named = {key: row.pop(key) for key in NAMED if key in row}
        return Summary(
            env=spec.name, scenario=spec.scenario, algo=self.algo, seed=self.config.seed, steps=report.steps,
            resumed_from=report.start_step or None, wall_seconds=report.seconds, device=self.device.type,
            world_size=self.crew.count, episodes=self.config.evaluation.episodes,
            behaviour_return_mean=behaviour["return_mean"],
            baselines={name: results[name].row for name in self.methods[1:]}, **named,
            extra={**row, "behaviour": behaviour, "data_return_mean": data_mean, "data": self.data_name,
                   **self.layer},
        )  # fmt: skip

    def draw(self, summary: dict[str, Any], result: Assessment, run: RunDirectory) -> None:
        title = f"{self.algo} on {self.problem.spec.name} {self.problem.spec.scenario}, {self.data_name} data"
        behaviour, baselines = summary["behaviour_return_mean"], summary["baselines"]
        references = {"behaviour": behaviour, **{name: row["return_mean"] for name, row in baselines.items()}}
        bars = [{"method": self.algo, **summary}, *({"method": name, **row} for name, row in baselines.items())]
        plots.learning_curve(run.metrics.path, run.plots / "learning_curve.png", title, references)
        plots.return_bars(bars, run.plots / "returns.png", title, behaviour)
        if result.frames:
            rendering.write_gif(result.frames, run.path / "rollout.gif")


# Entries of an assessment that summary.json names itself; the others are laid beside them.
NAMED = (
    "return_mean", "return_ci95", "win_rate", "arrival_rate", "cost_mean", "parameters", "network_calls_per_decision",
    "plan_ms_batch1",
)  # fmt: skip
AS_TRAINED = {"name": "trained", "constraints": None}
VIOLATIONS = ("plan_violations", "rollout_violations", "layer")
"""What a safeguard reports of plans, of episodes, and of the layer of safe actions."""


def data_line(store: EpisodeStore) -> str:
    """A data set's card in one line."""
    card = store.card
    return (
        f"data: {card['episodes']} episodes, {card['transitions']} transitions, return {card['return_mean']:.3f} "
        f"({card['return_min']:.3f} to {card['return_max']:.3f}), cost {card['cost_mean']:.3f}, "
        f"sha256 {card['sha256'][:12]}"
    )


VERB = configuration.Verb(
    "train",
    "train a method on offline data and compare it with baselines",
    TrainConfig,
    train,
    [
        "python -m madiff.train env=smac-like agents=3",
        "python -m madiff.train env=smac-like scenario=2s3z algo=madiff-c data.quality=medium+poor seed=1 resume=auto",
    ],
)

if __name__ == "__main__":
    sys.exit(main())
