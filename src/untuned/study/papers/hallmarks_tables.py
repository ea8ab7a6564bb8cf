"""The tables of the study of trajectories."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from untuned.study.papers.frame import Row, Rows, Table
from untuned.study.papers.hallmarks_numbers import BASE, branch, said
from untuned.study.papers.hallmarks_runs import BRANCHES, EPOCHS, POINTS, SWITCHES
from untuned.study.papers.rows import by, numbers


def tables(rows: Rows) -> list[Table]:
    """What stands behind the claims."""
    return [_settings_table(rows), _lines_table(rows), _late_table(rows), _movement_table(rows)]


def _mean(found: Sequence[Row], column: str, digits: int) -> str:
    values = np.array(numbers(found, column))
    return "none" if np.isnan(values).all() else f"{np.nanmean(values):.{digits}f}"


def _settings_table(rows: Rows) -> Table:
    columns = ("mds_origin", "mds_init", "rank_init", "movement", "straightness", "update_angle", "train_loss")
    keys = ("task", "lr", "momentum", "weight_decay", "batch_size", "steps")
    cells = list[tuple[str, ...]]()
    for key, mine in sorted(by(rows["settings"], *keys).items(), key=lambda item: tuple(map(str, item[0]))):
        cells.append(
            (
                *(str(value) for value in key),
                *(_mean(mine, column, 4 if column == "mds_origin" else 3) for column in columns),
                _mean(mine, "accuracy", 3),
                f"{sum(bool(row['diverged']) for row in mine)} of {len(mine)}",
            )
        )
    for width, mine in by(rows["widths"], "width").items():
        shown = (
            "MLP of width " + str(width[0]),
            str(BASE["lr"]),
            str(BASE["momentum"]),
            "0.0",
            "64",
            str(mine[0]["steps"]),
        )
        numbers_ = (_mean(mine, column, 4 if column == "mds_origin" else 3) for column in columns)
        diverged = f"{sum(bool(row['diverged']) for row in mine)} of {len(mine)}"
        cells.append((*shown, *numbers_, _mean(mine, "accuracy", 3), diverged))
    head = ("task", "lr", "momentum", "weight decay", "batch", "steps", "MDS from the origin", "MDS from the start")
    head += ("effective rank", "movement", "straightness", "angle of updates", "training loss", "accuracy", "diverged")
    note = (
        f"Means over the seeds that did not diverge. {POINTS + 1} points each. The effective rank is that of the map "
        "seen from theta_0; movement is |theta_T - theta_0| / |theta_0|, straightness the same distance over the path."
    )
    return Table("All settings", head, cells, note)


def _lines_table(rows: Rows) -> Table:
    found = rows["walk"]
    walked = f"{_mean(found, 'mds', 4)} measured, {_mean(found, 'theory', 4)} by theory, 0.6667 for many points"
    walker = f"random walk of 41 points in {found[0]['parameters']} dimensions, n = {len(found)}"
    cells = [
        ("all points on one ray from the centre", "1", "0"),
        (walker, walked, _mean(found, "update_angle", 2)),
        ("all points at right angles", "1 / 41", "not fixed"),
        ("momentum 0.9 fed with noise, every step recorded", "not fixed", "25.84 = arccos(0.9)"),
    ]
    return Table("Reference lines", ("trajectory", "MDS", "angle of successive updates, degrees"), cells)


def _late_table(rows: Rows) -> Table:
    cells = list[tuple[str, ...]]()
    for name in BRANCHES:
        for switch in SWITCHES if name != "everything" else (0,):
            at = switch or SWITCHES[0]
            share = np.nanmean(branch(rows, name, at, "share"))
            accuracy, whole = branch(rows, name, at), branch(rows, "everything", at)
            off = said(100 * (accuracy - whole), 2) if switch else "0"
            losses = (f"{branch(rows, name, at, column).mean():.3f}" for column in ("val_loss", "train_loss"))
            cells.append((name, str(switch), f"{100 * share:.2f} %", f"{100 * accuracy.mean():.2f}", off, *losses))
    head = (
        "trained after the switch",
        "switch, epochs",
        "share of parameters",
        "test accuracy, %",
        "to full training, points",
    )
    note = f"Means over seeds. Training ends after {EPOCHS} epochs; 1,000 test images, so that one image is 0.1 points."
    return Table("What is left to train", (*head, "test loss", "training loss"), cells, note)


def _movement_table(rows: Rows) -> Table:
    cells = list[tuple[str, ...]]()
    for (group,), mine in by(rows["movement"], "group").items():
        at = {epoch: [row for row in mine if row["epoch"] == epoch] for epoch in (*SWITCHES, EPOCHS)}
        cells.append((str(group), *(_mean(found, "moved", 3) for found in at.values()), _mean(at[EPOCHS], "mds", 3)))
    head = ("parameters", *(f"after epoch {epoch}" for epoch in (*SWITCHES, EPOCHS)), "MDS from the start")
    return Table(
        "Relative movement, |theta_t - theta_0| / |theta_0|, of the network with batch normalisation", head, cells
    )
