"""How long assets and runs should take, by what finished assets of the store have taken."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from flows.plan import RunPlan
from flows.progress.time_left import REST_SECONDS
from tasks.manifest.resolve import Entry
from tasks.store.interface import Damaged, Store


@dataclass(frozen=True)
class Cost:
    """Seconds of one optimisation step, and of everything after the optimisation."""

    step: float
    rest: float


# Until the store knows better: a step of SJC's size on one large GPU, and all that follows it.
DEFAULT_COST = Cost(step=0.2, rest=REST_SECONDS)


def known_costs(store: Store) -> dict[tuple[str, str], Cost]:
    """What finished assets of a prior and recipe took, by both names: medians."""
    from tasks.tables.read import query

    rows = query(
        store,
        "SELECT prior, recipe, median(seconds_optimize / steps) AS step,"
        " median(seconds_extract + seconds_evaluate + seconds_publish) AS rest"
        " FROM best_assets WHERE status = 'ok' AND seconds_optimize > 0 GROUP BY ALL"
        " HAVING step IS NOT NULL AND rest IS NOT NULL",
    ).to_pylist()
    return {(row["prior"], row["recipe"]): Cost(row["step"], row["rest"]) for row in rows}


def seconds_expected(plan: RunPlan) -> float | None:
    """How long the run should take, from finished assets of the same prior and recipe.

    None while the store has none for one of its recipes.
    """
    try:
        seconds, guessed = seconds_of_assets(plan.todo.values(), known_costs(plan.store))
    except Damaged:  # no reason against a plan
        return None
    return None if guessed else sum(seconds.values()) / len(plan.devices)


def seconds_of_assets(
    entries: Iterable[Entry], known: Mapping[tuple[str, str], Cost]
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """The seconds that each asset should take, and the priors and recipes where that is a guess.

    known: what `known_costs` returns. A field is optimised once: the later assets that share it
    cost what comes after.
    """
    fields: set[str] = set()
    seconds: dict[str, float] = {}
    guessed: dict[tuple[str, str], None] = {}
    for entry in entries:
        asset_id, kind = entry.spec.asset_id, (entry.spec.prior, entry.spec.recipe.name)
        if asset_id in seconds:
            continue
        if kind not in known:
            guessed[kind] = None
        cost = known.get(kind, DEFAULT_COST)
        steps = 0 if entry.spec.field_id in fields else entry.spec.recipe.optimize.steps
        seconds[asset_id] = round(steps * cost.step + cost.rest, 3)
        fields.add(entry.spec.field_id)
    return seconds, list(guessed)
