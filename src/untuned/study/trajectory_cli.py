"""The command `untuned trajectory`."""

import csv
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def trajectory(
    checkpoints: Annotated[
        list[Path],
        typer.Argument(
            help="Files or folders of one run. If each name ends in another number, as checkpoint-500 does, these are "
            "the steps and give the order; else the order is as written."
        ),
    ],
    center: Annotated[
        Literal["origin", "init"], typer.Option(help="Where the points are seen from: 0, or the first of them.")
    ] = "origin",
    by: Annotated[Literal["all", "layer", "tensor"], typer.Option(help="Parts of the model to measure, too.")] = "all",
    out: Annotated[Path, typer.Option(help="Folder of the results.")] = Path("trajectory"),
) -> None:
    """Draw the trajectory map of saved checkpoints and measure how far and how straight the run went: arXiv 2403.07379.

    Writes map.png, map.csv (the cosine of every two points) and measures.csv.
    """
    from dataclasses import asdict

    from untuned.diagnostics import trajectory_map
    from untuned.schedules.tables import replace
    from untuned.study import charts
    from untuned.study.config import StudyError
    from untuned.study.trajectory_picture import draw_map

    for path in checkpoints:
        if not path.exists():
            raise StudyError(f"there is no checkpoint {path}")
    ordered, steps = _in_order(checkpoints)
    if out.exists() and not out.is_dir():
        raise StudyError(f"{out} is no folder; choose another --out")
    try:
        found = trajectory_map(ordered, center, None if by == "all" else by, steps=steps)
    except ValueError as error:
        raise StudyError(str(error)) from error
    measures = [{"group": group, **asdict(of)} for group, of in found.measures.items()]
    try:
        out.mkdir(parents=True, exist_ok=True)

        def draw(ax: "Axes") -> None:
            draw_map(ax, found.matrix, found.steps)

        title = f"Cosines of {len(ordered)} points, seen from {'0' if center == 'origin' else 'the first'}"
        charts.png(out / "map.png", [(title, draw)], {}, "")
        table = [["step", *map(str, found.steps)]]
        table += [[str(step), *map(repr, row)] for step, row in zip(found.steps, found.matrix.tolist(), strict=True)]
        for name, rows in (("map", table), ("measures", [list(measures[0]), *(list(m.values()) for m in measures)])):
            replace(out / f"{name}.csv", lambda path, rows=rows: _write(path, rows))
    except OSError as error:
        raise StudyError(f"cannot write to {out} ({error}); choose another --out") from error
    for of in measures:
        print(
            f"{of['group']}: mean directional similarity {of['mds']:.4f}, |theta_T - theta_0| = {of['distance']:.4g}, "
            f"{100 * of['straightness']:.0f} % of the path, {100 * of['relative_movement']:.1f} % of |theta_0|"
        )
    print(f"map: {out / 'map.png'}")


def _in_order(checkpoints: Sequence[Path]) -> tuple[list[Path], list[int]]:
    numbers = [re.findall(r"\d+", path.name) for path in checkpoints]
    if all(numbers):
        steps = [int(of[-1]) for of in numbers]
        if len(set(steps)) == len(steps):
            ordered = sorted(zip(steps, checkpoints, strict=True))
            return [path for _, path in ordered], [step for step, _ in ordered]
    return list(checkpoints), list(range(len(checkpoints)))


def _write(path: Path, rows: Sequence[Sequence[object]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(rows)
