"""Pictures of a battle: units as team-coloured circles with bars for health and shield, shots as lines."""

from __future__ import annotations

import numpy as np
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.collections import EllipseCollection, LineCollection
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.path import Path
from matplotlib.textpath import TextPath
from matplotlib.transforms import Affine2D

from .battle import Battle
from .rules import WALKABLE, Rules

ALLY, ENEMY, SHIELD, GROUND, LOST = "#1f6fb4", "#c8452f", "#58c4dd", "#f3f1ea", "#dddddd"
SIZE_INCHES, DPI = (7.2, 4.4), 100


class Picture:
    """Draws battles of one scenario on one canvas, which is cleared between frames."""

    def __init__(self, rules: Rules) -> None:
        self.rules = rules
        self.canvas = FigureCanvasAgg(Figure(SIZE_INCHES, DPI))
        self.axes = self.canvas.figure.add_axes((0.02, 0.10, 0.96, 0.81))
        self.colours = np.array([ALLY] * rules.allies + [ENEMY] * rules.enemies)
        self.radius = rules.radius[:, 0].cpu().numpy()
        self.kinds = {unit.letter: unit.name for unit in rules.units}
        self.unit_letters = np.array([unit.letter for unit in rules.units])
        self.markers = {letter: _letter_marker(letter) for letter in self.kinds}
        # Those who stand over others are drawn last.
        self.upwards = np.argsort([unit.layer != "ground" for unit in rules.units], kind="stable")

    def draw(self, battle: Battle) -> np.ndarray:
        """One battle (tensors without the copies axis) as (height, width, 3) uint8."""
        axes = self.axes
        axes.clear()
        (left, right), (bottom, top) = WALKABLE
        axes.set(xlim=(left - 0.5, right + 0.5), ylim=(bottom - 1.2, top + 0.8), xticks=[], yticks=[], aspect="equal")
        axes.set_facecolor(GROUND)
        places, alive = battle.position.numpy().T, battle.health.numpy() > 0
        self._shots(battle, places)
        self._units(places, alive)
        self._bars(battle, places, alive)
        self._captions(battle, alive)
        self.canvas.draw()
        return np.asarray(self.canvas.buffer_rgba())[..., :3].copy()

    def _shots(self, battle: Battle, places: np.ndarray) -> None:
        target = battle.shots.numpy()
        firing = np.flatnonzero(target != np.arange(len(target)))
        lines = [(places[i], places[target[i]]) for i in firing]
        shots = LineCollection(lines, colors=self.colours[firing], linewidths=1.3, alpha=0.7, zorder=2)
        self.axes.add_collection(shots)

    def _units(self, places: np.ndarray, alive: np.ndarray) -> None:
        for units, alpha in ((self.upwards[alive[self.upwards]], 1.0), (np.flatnonzero(~alive), 0.25)):
            width = 2 * self.radius[units]
            circles = EllipseCollection(
                width, width, np.zeros(len(width)), units="xy", offsets=places[units], transOffset=self.axes.transData,
                facecolors=self.colours[units] if alpha == 1 else LOST, edgecolors=self.colours[units], alpha=alpha,
                zorder=3 if alpha == 1 else 1,
            )  # fmt: skip
            self.axes.add_collection(circles)
        for letter, marker in self.markers.items():
            shown = places[alive & (self.unit_letters == letter)]
            self.axes.plot(*shown.T, ls="", marker=marker, color="white", ms=5, mew=0.3, zorder=4)

    def _bars(self, battle: Battle, places: np.ndarray, alive: np.ndarray) -> None:
        half, above = np.maximum(self.radius, 0.45), self.radius + 0.25
        left, level = places[:, 0] - half, places[:, 1] + above
        health = battle.health.numpy() / self.rules.health[:, 0].cpu().numpy()
        self._bar(left, level, 2 * half, np.ones_like(health), alive, LOST)
        self._bar(left, level, 2 * half, health, alive, "#3a9a4a")
        shield = battle.shield.numpy() / self.rules.shield[:, 0].clamp(min=1).cpu().numpy()
        self._bar(left, level + 0.22, 2 * half, shield, alive & (shield > 0), SHIELD)

    def _bar(
        self, left: np.ndarray, level: np.ndarray, width: np.ndarray, part: np.ndarray, shown: np.ndarray, colour: str
    ) -> None:
        ends = np.stack([np.stack([left, level], 1), np.stack([left + width * part, level], 1)], 1)[shown]
        self.axes.add_collection(LineCollection(list(ends), colors=colour, linewidths=2.2, zorder=5, capstyle="butt"))

    def _captions(self, battle: Battle, alive: np.ndarray) -> None:
        n = self.rules.allies
        ends = {"VICTORY": battle.won, "NOT WON": battle.terminated, "TIME UP": battle.truncated}
        end = next((f"   {word}" for word, holds in ends.items() if holds), "")
        self.axes.set_title(
            f"smac-like {self.rules.scenario.name}   step {int(battle.elapsed)} of {self.rules.scenario.limit}   "
            f"allies {alive[:n].sum()}/{n}   enemies {alive[n:].sum()}/{self.rules.enemies}{end}", size=10,
        )  # fmt: skip
        marks = [
            Line2D([], [], marker="o", ls="", color=ALLY, label="allies (the agents)"),
            Line2D([], [], marker="o", ls="", color=ENEMY, label="enemies (scripted)"),
            Line2D([], [], color="#3a9a4a", lw=2.2, label="health"),
            Line2D([], [], color="#777777", lw=1.3, label="shots of the last step"),
        ]
        if self.rules.shields:
            marks.insert(3, Line2D([], [], color=SHIELD, lw=2.2, label="shield"))
        self.axes.legend(handles=marks, loc="lower center", ncols=5, fontsize=7, frameon=False, handletextpad=0.5)
        self.axes.set_xlabel("    ".join(f"{letter} = {name}" for letter, name in self.kinds.items()), size=8)


def _letter_marker(letter: str) -> Path:
    """The letter's outline around its middle: far cheaper to draw than one text per unit."""
    outline = TextPath((0, 0), letter)
    x, y = outline.get_extents().get_points().mean(0)
    return outline.transformed(Affine2D().translate(-x, -y))
