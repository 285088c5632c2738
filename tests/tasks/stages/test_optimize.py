"""What is known of an optimisation, one that failed included, on its way into the store."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from task_samples import report, spec

from tasks.devices.job import SceneError
from tasks.records.verify import verify_store
from tasks.stages import optimize as module
from tasks.stages.asset import Asset
from tasks.stages.publish import record_failure
from tasks.store import open_store
from tasks.tables.read import query
from tasks.tables.write import TableWriter


@pytest.mark.parametrize("status", ["diverged", "timeout"])
def test_what_the_steps_of_a_failed_asset_measured_is_a_row(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, status: str
) -> None:
    history = report()["history"]

    class Pool:
        def run(self, *_: Any, **__: Any) -> Any:
            error = SceneError(status, status.title(), "no field")
            error.history = history
            raise error

    monkeypatch.setattr(module, "show_progress", lambda board, name: lambda share: None)
    store = open_store(tmp_path / "store")
    with TableWriter(store) as rows:
        asset = Asset("duck", spec(), store, tmp_path / "scratch", rows)
        pool: Any = Pool()
        board: Any = None
        with pytest.raises(SceneError) as caught:
            module.optimize.fn(asset, "run1", pool, None, lambda event: None, board)
        assert record_failure(asset, caught.value) == status
    [row] = query(store, "SELECT * FROM history").to_pylist()
    assert row == {"asset_id": asset.id, "attempt": "a01", "run_id": "run1", **history}
    assert verify_store(store) == []
