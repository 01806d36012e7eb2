"""From the answers of all seeds to the rows of the table, their bands, and the check of a new seed against them."""

from math import sqrt
from statistics import mean, stdev
from typing import Any

from vtkernels.methods import methods

from .data import CHANCE, TASKS, TOKENS
from .evaluate import Job, jobs
from .methods import KEEP, NOT_RUN

COLUMNS = (*TASKS, "mean")
LEARNED = 0.05  # above chance, by the lower end of the unpruned model's band
AGREE = 0.9  # share of a new seed's figures that must lie within the bands for a new seed


def t_quantile(freedom: int) -> float:
    """97.5 % of Student's distribution."""
    from scipy.stats import t

    return float(t.ppf(0.975, freedom))


def band(values: list[float]) -> dict[str, Any]:
    """Mean and 95 % t-interval of it, of the values as they are written; of one value, the value."""
    values = [round(value, 4) for value in values]
    middle, half = mean(values), 0.0
    if len(values) > 1:
        half = t_quantile(len(values) - 1) * stdev(values) / sqrt(len(values))
    low, high = max(0.0, middle - half), min(1.0, middle + half)
    return {"mean": round(middle, 4), "low": round(low, 4), "high": round(high, 4),
            "seeds": values}


def learned(full: list[dict[str, Any]]) -> list[str]:
    """The tasks that the unpruned models of all seeds answer better than by guessing. Rows of others say nothing."""
    found = [task for task in TASKS if band([one["accuracy"][task] for one in full])["low"] > CHANCE[task] + LEARNED]
    if not found:
        raise ValueError("retention: the unpruned models answer no task better than by guessing, allowed: one or more "
                         "that they do; train for more `steps`")
    return found


def with_mean(accuracy: dict[str, float], tasks: list[str]) -> dict[str, float]:
    return {**accuracy, "mean": mean(accuracy[task] for task in tasks)}


def row_of(job: Job, found: list[dict[str, Any]], tasks: list[str], ms: float | None) -> dict[str, Any]:
    accuracy = [with_mean(one["accuracy"], tasks) for one in found]
    row: dict[str, Any] = {} if job.entry is None else {
        "method": job.entry.name, "title": job.entry.title, "where": job.entry.where, "policy": job.policy,
        "keep": job.keep, "query_aware": job.entry.query_aware, "note": job.entry.note}
    return row | {"kept": round(mean(one["kept"] for one in found), 2),
                  "accuracy": {name: band([one[name] for one in accuracy]) for name in COLUMNS},
                  "kv_bytes": round(mean(one["kv_bytes"] for one in found)), "prefill_ms": ms}


def summarise(seeds: dict[int, dict[str, Any]], timing: dict[str, Any], about: dict[str, Any]) -> dict[str, Any]:
    """The results file: `about`, the rows of all seeds, and the methods that were not run."""
    answers = [seeds[seed]["rows"] for seed in sorted(seeds)]
    rows, full = [], None
    tasks = learned([one[Job(None, None, "preserve").key] for one in answers])
    for job in jobs():
        found = [one[job.key] for one in answers]
        if None in found:
            continue
        row = row_of(job, found, tasks, _ms(timing, job))
        if job.entry is None:
            full = row
        else:
            rows.append(row)
    not_run = [{"method": name, "title": methods()[name].info.title, "reason": reason}
               for name, reason in NOT_RUN.items()]
    timing = {key: value for key, value in timing.items() if key != "ms"}
    return about | {"seeds": sorted(seeds), "tasks": list(TASKS), "learned": tasks, "chance": CHANCE,
                    "visual_tokens": TOKENS, "keep": list(KEEP), "timing": timing, "full": full, "rows": rows,
                    "not_run": not_run}


def _ms(timing: dict[str, Any], job: Job) -> float:
    """That of the job, or of the same one with the policy that was timed."""
    policy = job.policy if job.entry is None else job.entry.policies[0]
    return timing["ms"][Job(job.entry, job.keep, policy).key]


def retimed(data: dict[str, Any], timing: dict[str, Any]) -> dict[str, Any]:
    """The results with new times."""
    by_row = {_identity(row_of_job): job for job in jobs() if (row_of_job := _named(job))}
    rows = [row | {"prefill_ms": _ms(timing, by_row[_identity(row)])} for row in data["rows"]]
    full = data["full"] | {"prefill_ms": timing["ms"][Job(None, None, "preserve").key]}
    return data | {"full": full, "rows": rows, "timing": {k: v for k, v in timing.items() if k != "ms"}}


def _named(job: Job) -> dict[str, Any] | None:
    return None if job.entry is None else {"method": job.entry.name, "where": job.entry.where, "policy": job.policy,
                                           "keep": job.keep}


def _identity(row: dict[str, Any]) -> tuple[Any, ...]:
    return row["method"], row["where"], row["policy"], row["keep"]


def prediction(values: list[float], questions: int) -> tuple[float, float]:
    """Where a further seed falls in 95 % of cases: the t-interval of one more value, at least two questions wide."""
    half = t_quantile(len(values) - 1) * stdev(values) * sqrt(1 + 1 / len(values))
    half = max(half, 2 / questions)
    return mean(values) - half, mean(values) + half


def outside(data: dict[str, Any], answers: dict[str, Any]) -> tuple[list[str], int]:
    """The figures of one new seed that lie outside the bands of the committed ones, and how many there are in all."""
    committed = {_identity(row): row for row in data["rows"]}
    misses, total = [], 0
    for job in jobs():
        name = _named(job)
        row = data["full"] if name is None else committed.get(_identity(name))
        found = answers[job.key]
        if row is None or found is None:
            if (row is None) != (found is None):
                misses.append(f"{job.key}: in one of the two only")
            continue
        for column, value in with_mean(found["accuracy"], data["learned"]).items():
            low, high = prediction(row["accuracy"][column]["seeds"], data["questions"])
            total += 1
            if not low - 1e-9 <= value <= high + 1e-9:
                misses.append(f"{job.key} {column}: {value:.3f}, band {low:.3f} to {high:.3f}")
    return misses, total


def agrees(data: dict[str, Any], misses: list[str], total: int) -> bool:
    """The unpruned model and nearly all other figures lie within the bands."""
    return not any(miss.startswith("full/") for miss in misses) and len(misses) <= (1 - AGREE) * total
