"""How long a run should take."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from task_samples import spec

from flows.progress import estimate
from flows.progress.estimate import Cost, seconds_expected


def test_devices_share_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    known = {("toybox", "draft"): Cost(0.1, 2.0)}
    monkeypatch.setattr(estimate, "known_costs", lambda store: known)
    specs = [spec("a duck"), spec("a pig"), spec("a car")]
    plan: Any = SimpleNamespace(
        todo={s.asset_id: SimpleNamespace(spec=s) for s in specs}, store=None, devices=["cpu"] * 2
    )
    each = 0.1 * specs[0].recipe.optimize.steps + 2.0
    assert seconds_expected(plan) == pytest.approx(3 * each / 2)
    known.clear()
    assert seconds_expected(plan) is None, "a guess is none"
