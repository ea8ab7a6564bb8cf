"""The one finding of a study that stands above its report."""

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence

from untuned.study.results import Metric, Results, TaskResult
from untuned.study.stats import Summary

Names = Mapping[str, str]  # what people read, by method


def headline(results: Results, names: Names) -> str:
    """What methods get at their default lr beside tuned Adam; without such runs, how wide a range of lr works.

    With results of one task to three, and a count of tasks for more.
    """
    crashed = sum(row["status"] == "crashed" for row in results.ledger.values())
    if crashed and not results.finished:
        return f"No run has finished: {crashed} of {len(results.runs)} crashed."
    tasks = [t for t in results.tasks if any(s.n for s in t.summaries)]
    if not tasks:
        return "No run has finished yet."
    if len(tasks) > 3:
        return _of_many(tasks, names)
    if len(results.tasks) == 1:
        return _of_one(tasks[0], names)
    if any(s.default for t in tasks for s in t.summaries):
        return _of_few(tasks, names)
    return " ".join(f"{t.task.name}: {_of_one(t, names)}" for t in tasks)


def _of_one(t: TaskResult, names: Names) -> str:
    if any(s.default for s in t.summaries):
        return _at_default(t, names)
    return _widths([t], names) or _best(t, names)


def _at_default(t: TaskResult, names: Names) -> str:
    ran = [(s, s.default) for s in t.summaries if s.default]
    text = t.metric.text
    learned = [(s, at) for s, at in ran if at.learned]
    if not learned:
        first = "At its default lr, {0} learns nothing" if len(ran) == 1 else "At their default lr, none of {1} learns"
        said, leaders = first.format(names[ran[0][0].method], f"{len(ran)} methods"), []
    else:
        best = (max if t.metric.maximize else min)(at.mean for _, at in learned)
        leaders = [s for s, at in learned if text(at.mean) == text(best)]
        who = _and([names[s.method] for s in leaders])
        its, ends = ("its", "ends") if len(leaders) == 1 else ("their", "end")
        said = f"At {its} default lr, {who} {ends} at {_value(t.metric, best)}"
        if len(leaders) < len(ran):
            said += f", best of {len(ran)}"
    tuned = _reference(t.summaries, t.metric)
    if tuned is None:
        return said + "."
    value = _short(t.metric, tuned.mean)
    if leaders == [tuned]:
        if tuned.default and text(tuned.default.mean) == text(tuned.mean):
            return said + f"; none of its {tuned.tried} learning rates does better."
        return said + f"; with the best of its {tuned.tried} learning rates at {value}."
    return said + f"; {names[tuned.method]} with the best of {tuned.tried} learning rates at {value}."


def _of_few(of: Sequence[TaskResult], names: Names) -> str:
    """The best default on each of two or three tasks, and what tuned Adam gets there."""
    there = []  # (method or None, what a reader sees) by task
    for t in of:
        learned = [(s.method, s.default) for s in t.summaries if s.default and s.default.learned]
        better = max if t.metric.maximize else min
        method, at = better(learned, key=lambda it: it[1].mean, default=(None, None))
        there.append((method, f"{t.task.name} ({_short(t.metric, at.mean)})" if at else t.task.name))
    ran = {s.method for t in of for s in t.summaries if s.default}
    leaders = {method: [text for found, text in there if found == method] for method, _ in there}
    said = [f"{names[method]} on {_and(tasks)}" for method, tasks in leaders.items() if method]
    said += [f"none beats chance on {_and(tasks)}" for method, tasks in leaders.items() if not method]
    if len(ran) == 1 and len(leaders) == 1 and None not in leaders:
        text = f"At its default lr, {names[next(iter(ran))]} ends at " + _and(
            [f"{_short(t.metric, s.default.mean)} on {t.task.name}" for t in of for s in t.summaries if s.default]
        )
    else:
        text = f"Best of {len(ran)} at {'its' if len(ran) == 1 else 'their'} default lr: {', '.join(said)}"
    references = [_reference(t.summaries, t.metric) for t in of]
    if (tuned := references[0]) and all(r and r.method == tuned.method for r in references):
        values = _and([_short(t.metric, r.mean) for t, r in zip(of, references, strict=True) if r])
        its = "" if len(names) == 1 else f"{names[tuned.method]} "
        text += f"; {its}with the best of its learning rates {'gets ' if its else ''}{values}"
    return text + "."


def _best(t: TaskResult, names: Names) -> str:
    """The best result, where each method has learning rates of its own, or a single one."""
    learned = [s for s in t.summaries if s.own]
    if not learned:
        return "No method has learned anything yet."
    best = (max if t.metric.maximize else min)(learned, key=lambda s: s.mean)
    where = f"with the best of {best.tried} learning rates" if best.tried > 1 else f"at lr {best.best_lr:g}"
    ran = sum(s.n > 0 for s in t.summaries)
    return f"{names[best.method]} {where} ends at {_value(t.metric, best.mean)}" + (
        f", best of {ran} methods." if ran > 1 else "."
    )


def _widths(of: Sequence[TaskResult], names: Names) -> str | None:
    """How wide the plateau of Adam is, and the widest of a method that keeps up with the best on half of the tasks.

    None where methods were not tried at the same three or more learning rates: widths would not compare.
    """
    if any(len({o.lrs for o in t.outcomes}) > 1 or len(t.outcomes[0].lrs) < 3 for t in of):
        return None
    width, keeps_up, censored = defaultdict[str, float](float), Counter[str](), set[str]()
    for s in (s for t in of for s in t.summaries):
        if s.own and s.own.decades:
            width[s.method] += s.own.decades / len(of)
            keeps_up[s.method] += s.overall is not None
            if s.own.censored:
                censored.add(s.method)
    if not width:
        return None
    widest, *others = sorted(width, key=lambda m: (2 * keeps_up[m] < len(of), -width[m], m))
    first = "adam" if "adam" in others else others[-1] if others else widest

    def over(method: str) -> str:
        return f"over {'at least ' if method in censored else ''}{width[method]:.1f}"

    closes = {t.metric.close for t in of}
    close = f"within {closes.pop()} of" if len(closes) == 1 else "close to"
    text = f"{names[first]} stays {close} its best {over(first)} decades of learning rate"
    if widest != first:
        text += f", {names[widest]} {over(widest)}"
    return text + (f", on average over {len(of)} tasks." if len(of) > 1 else ".")


def _of_many(of: Sequence[TaskResult], names: Names) -> str:
    """On how many tasks a default, and tuned Adam, come close to the best of all methods and learning rates."""
    at_default, at_best, ran = Counter[str](), Counter[str](), set[str]()
    for t in of:
        sign = 1 if t.metric.maximize else -1
        limit = max(sign * s.mean for s in t.summaries if s.n) - t.metric.tolerance
        for s in t.summaries:
            at_best[s.method] += bool(s.overall)
            if s.default:
                ran.add(s.method)
                at_default[s.method] += s.default.learned and sign * s.default.mean >= limit
    if not ran:
        return _widths(of, names) or _most(of, names, at_best, "with its best learning rate", "with their best ones")
    said = _most(of, names, at_default, "at its default lr", "at their default lr", ran)
    tuned = next((m for m in at_best if m in ("adam", "adamw")), None)
    if tuned is None or max(s.tried for t in of for s in t.summaries if s.method == tuned) < 2:
        return said
    return said.removesuffix(".") + f"; {names[tuned]} with the best of its learning rates on {at_best[tuned]}."


def _most(
    of: Sequence[TaskResult], names: Names, count: Counter[str], its: str, their: str, ran: set[str] | None = None
) -> str:
    ran = set(count) if ran is None else ran
    most = max(count[m] for m in ran)
    leaders = [names[m] for m in count if m in ran and count[m] == most]
    goal = "the best of all methods and learning rates" if len(names) > 1 else "the best of its learning rates"
    if not most:
        return f"{their[0].upper()}{their[1:]}, no method comes close to {goal} on any of {len(of)} tasks."
    how, come = (its, "comes") if len(leaders) == 1 else (their, "come")
    said = f"{how[0].upper()}{how[1:]}, {_and(leaders)} {come} close to {goal} on {most} of {len(of)} tasks"
    others = len(ran) - len(leaders)
    return said + (f", the most of {len(ran)} methods." if others else ".")


def _reference(summaries: Sequence[Summary], metric: Metric) -> Summary | None:
    """Tuned Adam or AdamW, without them the best method, of those that learned at more than one learning rate."""
    tuned = [s for s in summaries if s.tried > 1 and s.own]
    for name in ("adam", "adamw"):
        for s in tuned:
            if s.method == name or s.method.startswith(f"{name}("):
                return s
    return (max if metric.maximize else min)(tuned, key=lambda s: s.mean, default=None)


def _short(metric: Metric, value: float) -> str:
    return metric.text(value) + (" %" if metric.percent else "")


def _value(metric: Metric, value: float) -> str:
    """`83.4 % validation accuracy` or `validation loss 2.481`."""
    return f"{metric.text(value)} % {metric.label}" if metric.percent else f"{metric.label} {metric.text(value)}"


def _and(words: Sequence[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
