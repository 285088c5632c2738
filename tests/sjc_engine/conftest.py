"""Networks as they are."""

import pytest

from sjc_engine.priors import traced


@pytest.fixture(autouse=True)
def untraced(monkeypatch):
    """A trace takes half a second, ten times as long as all calls of most tests.

    That it answers as the network does, of every family, is test_traced.py's business. Engine
    processes trace.
    """
    monkeypatch.setattr(traced, "CALLS", 0)
