"""Write the runs of tuned AdamW that come with the package: src/untuned/study/data/baseline.csv.

    untuned regret --suite public --fresh-baseline --out FOLDER
    python scripts/regret_baseline.py FOLDER

The first takes about 40 minutes on two cores, goes on where it was stopped, and refuses nothing: the second does, as
long as a neighbour of a near-best learning rate has not run.
"""

import json
import sys
from pathlib import Path

from untuned.study import regret
from untuned.study.store import Store


def main(folder: Path) -> None:
    store = Store(folder)
    rows = store.runs().to_pylist()
    machines = {json.loads(row["machine"])["processor"] for row in rows}
    versions = {json.loads(row["versions"])["torch"] for row in rows}
    seeds = len(store.study.seeds)
    head = (
        f"{regret.REFERENCE} for shares of the step budget, {seeds} seeds; {', '.join(sorted(machines))}; "
        f"torch {', '.join(sorted(versions))}; untuned {store.study.version}; scripts/regret_baseline.py"
    )
    regret.export(store, regret.BASELINE, head)
    print(regret.BASELINE)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
