"""Make the jobs of a study that have not been made, and write what they found."""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from datetime import date
from multiprocessing import active_children, get_context
from pathlib import Path

import torch

from untuned.study import tasks
from untuned.study.config import StudyError
from untuned.study.papers.frame import Job, PaperStudy, Row
from untuned.study.papers.rows import Record, claim_folder, load, merged, save
from untuned.study.store import processor


def run(
    study: PaperStudy, folder: Path, seeds: int, workers: int, ended: Callable[[Record, int, int], None]
) -> list[Record]:
    """All records of the study, after `ended(record, how many, of how many)` for each job that was made now.

    A job that raises costs its own rows alone: the others are made before StudyError says what it raised.
    """
    check(study)
    claim_folder(study, folder)
    with _pool(workers) as pool:
        known: list[Record] = []
        while True:
            asked = study.jobs(seeds, merged(known))
            missing = [job for job in asked if load(study, folder, job) is None]
            failed = _make(study, folder, pool, missing, len(asked), ended)
            if failed:
                job, error = failed[0]
                raise StudyError(
                    f"{len(failed)} of {len(asked)} jobs of {study.name} failed, the first "
                    f"{job.function.__name__}({_arguments(job)}): {type(error).__name__}: {error}; the rows of the "
                    "others are kept, and the same command tries these again"
                ) from error
            now = records(study, folder, asked)
            if len(now) == len(known):
                return now
            known = now


def records(study: PaperStudy, folder: Path, asked: Sequence[Job]) -> list[Record]:
    """The records of those jobs that have ended, in the order of the jobs."""
    return [record for job in asked if (record := load(study, folder, job)) is not None]


def check(study: PaperStudy) -> None:
    """Raise StudyError, before anything is computed, if a package or the data of a task is missing."""
    for module, extra in study.needs.items():
        if importlib.util.find_spec(module) is None:
            raise StudyError(f'the study {study.name} needs {module}; from the clone: pip install ".[{extra}]"')
    for task in study.data:
        try:
            tasks.load(task)
        except FileNotFoundError as error:
            raise StudyError(f"the study {study.name} needs the data of the task {task}: {error}") from error


def _make(
    study: PaperStudy,
    folder: Path,
    pool: ProcessPoolExecutor,
    jobs: Sequence[Job],
    of: int,
    ended: Callable[[Record, int, int], None],
) -> list[tuple[Job, Exception]]:
    """Make the jobs; those that raised come back with what they raised."""
    failed: list[tuple[Job, Exception]] = []
    waiting: dict[Future[tuple[Sequence[Row], float]], Job] = {pool.submit(_timed, job): job for job in jobs}
    done = of - len(jobs)
    while waiting:
        for future in wait(waiting, return_when=FIRST_COMPLETED).done:
            job = waiting.pop(future)
            try:
                rows, seconds = future.result()
            except BrokenProcessPool as error:
                raise StudyError(
                    f"a process of {study.name} was ended from outside, perhaps for want of memory; the rows of the "
                    "jobs that had ended are kept, and the same command goes on from there"
                ) from error
            except Exception as error:
                failed.append((job, error))
                continue
            today = date.today().isoformat()
            record = Record(
                job.function.__name__, dict(job.arguments), rows, seconds, today, processor(), torch.__version__
            )
            save(study, folder, job, record)
            done += 1
            ended(record, done, of)
    return failed


def _timed(job: Job) -> tuple[Sequence[Row], float]:
    begin = time.perf_counter()
    rows = job.function(**job.arguments)
    return rows, time.perf_counter() - begin


def _arguments(job: Job) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in job.arguments.items())


@contextmanager
def _pool(workers: int) -> Iterator[ProcessPoolExecutor]:
    """Processes of one thread each. An error or Ctrl-C ends them, where a pool makes all jobs first."""
    with ProcessPoolExecutor(workers, get_context("spawn"), torch.set_num_threads, (1,)) as pool:
        try:
            yield pool
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            for process in active_children():
                process.terminate()
            raise
