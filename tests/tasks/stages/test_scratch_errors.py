"""What goes wrong in the scratch folder is never an asset's own failure."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import pytest
from synthetic_fields import TOTEM, centers, make_field, soft_density
from task_samples import spec

from tasks.devices.job import SceneError
from tasks.stages import extract as module
from tasks.stages.asset import Asset
from tasks.stages.extract import extract
from tasks.store import open_store
from tasks.tables.write import TableWriter


@pytest.fixture
def asset(tmp_path: Path) -> Asset:
    """One whose field is finished."""
    store = open_store(tmp_path / "store")
    asset = Asset("duck", spec(), store, tmp_path / "scratch", TableWriter(store))
    points = centers(16)
    make_field(soft_density(TOTEM(points), 60.0), points).save(asset.field_path)
    asset.keep_field({"steps": 20})
    asset.timings["optimize"] = 1.0
    return asset


def test_a_torn_field_is_optimised_again_by_the_next_run(asset: Asset) -> None:
    asset.field_path.write_bytes(asset.field_path.read_bytes()[:-100])
    with pytest.raises(SceneError, match="is not a field") as caught:
        extract.fn(asset)
    assert (caught.value.status, caught.value.error_type) == ("interrupted", "ScratchLost")
    assert not asset.field_path.exists()
    assert asset.kept_field() is None


def test_a_field_that_finds_no_memory_stays(asset: Asset, monkeypatch: pytest.MonkeyPatch) -> None:
    def greedy(path: Path) -> None:
        raise ValueError("it is not a field") from RuntimeError("can't allocate memory")

    monkeypatch.setattr(module, "load_field", greedy)
    with pytest.raises(ValueError, match="not a field"):
        extract.fn(asset)
    assert asset.kept_field() == {"steps": 20}


def test_whose_fault_an_error_is(asset: Asset, tmp_path: Path) -> None:
    scratch = tmp_path / "scratch"
    for number in (errno.ENOENT, errno.EIO, errno.ESTALE):
        assert asset.lost(OSError(number, os.strerror(number), str(scratch / "fields" / "x")))
        assert asset.lost(OSError(number, os.strerror(number)))  # at an open file
        assert not asset.lost(OSError(number, os.strerror(number), "/elsewhere/x"))
    assert not asset.lost(ValueError("its own"))
    asset.field_path.unlink()
    assert "is gone" in asset.lost(ValueError("whatever a library makes of that"))
