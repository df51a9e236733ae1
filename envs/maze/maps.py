"""Mazes of square cells with sides of 1: where the walls are, and the shortest ways from cell to cell.

Coordinates are those of gymnasium-robotics: x to the right, y up, the origin in the middle of the map; row 0 is on top.
A cell by its number is row * columns + column.
"""

from __future__ import annotations

from functools import cached_property

import numpy as np
import torch
from scipy.sparse import csr_matrix
from scipy.sparse.csgraph import dijkstra
from torch import Tensor

WALL = "#"
STEPS = ((0, 1), (1, 0), (1, 1), (1, -1))
"""To four neighbours, right to below left; the other four go back."""
TASTES = 8
"""Tables of ways, each the shortest for slightly different lengths, so that equal ways are all taken."""
TASTE = 0.1

UMAZE = ("#####", "#...#", "###.#", "#...#", "#####")
MEDIUM = (
    "########",
    "#..##..#",
    "#..#...#",
    "##...###",
    "#..#...#",
    "#.#..#.#",
    "#...#..#",
    "########",
)
LARGE = (
    "############",
    "#....#.....#",
    "#.##.#.#.#.#",
    "#......#...#",
    "#.####.###.#",
    "#..#.#.....#",
    "##.#.#.#.###",
    "#..#...#...#",
    "############",
)
ROOM = ("###########", *["#.........#"] * 7, "###########")


class Map:
    """A maze from its rows, of which the outer cells are all walls."""

    def __init__(self, rows: tuple[str, ...]) -> None:
        self.walls = torch.tensor([[cell == WALL for cell in row] for row in rows])
        self.rows, self.columns = self.walls.shape
        self.half = (self.columns / 2, self.rows / 2)
        """Distance from the middle to the right and to the upper edge."""

    def center(self, cell: Tensor) -> Tensor:
        """Middle of cells by their numbers, (...) int64 -> (..., 2) float64."""
        column, row = cell % self.columns, cell // self.columns
        return torch.stack([column + 0.5 - self.half[0], self.half[1] - row - 0.5], -1).double()

    def cell(self, position: Tensor) -> Tensor:
        """Number of the cell at a position, the nearest one for positions beyond the map: (..., 2) -> (...)."""
        column = (position[..., 0] + self.half[0]).floor().clamp(0, self.columns - 1)
        row = (self.half[1] - position[..., 1]).floor().clamp(0, self.rows - 1)
        return (row * self.columns + column).long()

    @cached_property
    def free(self) -> Tensor:
        """Numbers of the cells without a wall."""
        return (~self.walls).flatten().nonzero()[:, 0]

    @cached_property
    def lengths(self) -> Tensor:
        """Length of the shortest way between any two cells, (cells, cells) float64, infinite where there is none."""
        return torch.from_numpy(dijkstra(self._neighbours(None), directed=False))

    @cached_property
    def ways(self) -> Tensor:
        """The next cell on the way, by taste, from where and to where: (TASTES, cells, cells) int64.

        The cell itself where one is there already or there is no way.
        """
        return torch.stack([self._way(np.random.default_rng(taste)) for taste in range(TASTES)])

    def _way(self, generator: np.random.Generator) -> Tensor:
        before = dijkstra(self._neighbours(generator), directed=False, return_predecessors=True)[1]
        # Ways lead back as they lead there: what comes before `a` on the way from b to a comes after it from a to b.
        following = torch.from_numpy(before.astype(np.int64)).T
        return torch.where(following < 0, torch.arange(len(following))[:, None], following)

    def _neighbours(self, generator: np.random.Generator | None) -> csr_matrix:
        """Lengths of the steps between free cells; diagonal ones pass no corner. The generator makes them uneven."""
        free, count = ~self.walls.numpy(), self.walls.numel()
        entries = []
        for down, right in STEPS:
            for cell in self.free.tolist():
                row, column = divmod(cell, self.columns)
                passed = free[row, column + right] and free[row + down, column]
                if free[row + down, column + right] and passed:
                    length = np.hypot(down, right) * (1 if generator is None else 1 + TASTE * generator.random())
                    entries.append((length, cell, cell + down * self.columns + right))
        length, start, end = zip(*entries, strict=True)
        return csr_matrix((length, (start, end)), (count, count))
