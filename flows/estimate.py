"""How long assets and runs should take, by what finished assets of the store have taken."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from flows.plan import RunPlan
from tasks.manifest.resolve import Entry
from tasks.store import open_store
from tasks.store.interface import Damaged, Store


@dataclass(frozen=True)
class Cost:
    """Seconds of one optimisation step, and of everything after the optimisation."""

    step: float
    rest: float

    def seconds(self, entry: Entry) -> float:
        """The time of an entry's whole asset."""
        return entry.spec.recipe.optimize.steps * self.step + self.rest


# Until the store knows better: a step of SJC's size on one large GPU, and all that follows it.
DEFAULT_COST = Cost(step=0.2, rest=15.0)


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
        costs = known_costs(plan.store)
    except Damaged:  # no reason against a plan
        return None
    seconds = 0.0
    for entry in plan.todo.values():
        cost = costs.get((entry.spec.prior, entry.spec.recipe.name))
        if cost is None:
            return None
        seconds += cost.seconds(entry)
    return seconds / len(plan.devices)


def seconds_of_assets(
    entries: Iterable[Entry], store: str
) -> tuple[dict[str, float], list[tuple[str, str]]]:
    """The seconds that each asset should take, and the priors and recipes where that is a guess.

    A field is optimised once: the later assets that share it cost what comes after.
    """
    known = {}
    if "://" in store or Path(store).exists():
        known = known_costs(open_store(store, writable=False))
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
        field_id = entry.spec.field_id
        seconds[asset_id] = round(cost.rest if field_id in fields else cost.seconds(entry), 3)
        fields.add(field_id)
    return seconds, list(guessed)
