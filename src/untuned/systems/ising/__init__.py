"""The continuous-variable coherent Ising machine with momentum and Adam: arXiv 2401.12135.

`CIM(feedback).solve(problem)` runs many samples of the simulated machine side by side; `multi_start` is the plain
method beside it. Problems are `BoxQP` and, as an extension, `Ising`, from files or seeded generators; the measures say
how many samples succeed, how long that takes and how much they differ. The equations are the paper's; no code of other
packages was used.
"""

from untuned.systems.ising.baseline import multi_start
from untuned.systems.ising.exact import active_sets, brute_force, prove
from untuned.systems.ising.instances import (
    conditioned,
    erdos_renyi,
    read_best,
    read_boxqp,
    read_gset,
    sherrington_kirkpatrick,
    sparse_boxqp,
)
from untuned.systems.ising.measures import (
    Diversity,
    diversity,
    gaps,
    roundtrip_fraction,
    running_gaps,
    success,
    time_to_target,
)
from untuned.systems.ising.problems import BoxQP, Ising, Problem, max_cut
from untuned.systems.ising.solver import CIM, Samples

__all__ = [
    "CIM",
    "BoxQP",
    "Diversity",
    "Ising",
    "Problem",
    "Samples",
    "active_sets",
    "brute_force",
    "conditioned",
    "diversity",
    "erdos_renyi",
    "gaps",
    "max_cut",
    "multi_start",
    "prove",
    "read_best",
    "read_boxqp",
    "read_gset",
    "roundtrip_fraction",
    "running_gaps",
    "sherrington_kirkpatrick",
    "sparse_boxqp",
    "success",
    "time_to_target",
]
