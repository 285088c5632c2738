"""What a plan warns of."""

import pytest

from flows.plan import missing_xatlas
from sjc_engine.recipes import Recipe


def test_without_xatlas_only_who_wants_textures_is_warned(monkeypatch: pytest.MonkeyPatch) -> None:
    textured = Recipe.for_prior("toybox")
    plain = textured.override({"texture_size": 0})
    assert missing_xatlas([textured]) == []
    monkeypatch.setattr("flows.plan.find_spec", lambda name: None)
    assert missing_xatlas([plain]) == []
    [warning] = missing_xatlas([plain, textured])
    assert "vertex colours instead of textures" in warning
