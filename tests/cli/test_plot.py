from __future__ import annotations

import math

from cli.plot import plot


def test_a_plot_puts_the_extremes_into_its_corners() -> None:
    drawn = plot("t", {"a": [(1, 2.0), (8, 16.0)], "b": [(8, 2.0), (1, 16.0)]}, "x").splitlines()
    grid = [line.split("┤")[1] for line in drawn if "┤" in line]
    assert (grid[0][0], grid[0][-1], grid[-1][0], grid[-1][-1]) == ("○", "●", "●", "○")
    assert drawn[1].startswith("16 ┤")
    assert drawn[-1] == "● a  ○ b"
    middle = plot("t", {"a": [(1, 1.0), (math.e, math.e), (math.e**2, math.e**2)]}, "x").splitlines()
    assert sum(line.count("●") for line in middle[:-1]) == 3
    assert "●" in plot("flat", {"a": [(1, 1.0)]}, "x")
