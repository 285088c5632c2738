"""The one text of some data, to take digests of."""

from __future__ import annotations

import json
from typing import Any

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


def canonical_json(data: Any) -> str:
    """JSON with sorted keys and no spaces: equal data, equal text. Rejects NaN and infinity."""
    return _ENCODER.encode(data)
