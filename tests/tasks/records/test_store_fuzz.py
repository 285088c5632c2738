"""Files of a bucket with mistakes in them by the thousand: read, or refused with a typed error.

`make fuzz` tries 20,000; FUZZ_STORE and FUZZ_SEED choose how many, and which.
"""

from __future__ import annotations

import os
from pathlib import Path

from store_fuzzer import fuzz

COUNT = int(os.environ.get("FUZZ_STORE", "600"))
SEED = int(os.environ.get("FUZZ_SEED", "18"))


def test_a_strange_file_is_read_or_refused(tmp_path: Path) -> None:
    tally = fuzz(tmp_path, COUNT, SEED)
    print("read", dict(tally.read), "refused", dict(tally.refused), f"{tally.megabytes:.0f} MB")
    assert not tally.violations, "\n".join(tally.violations[:5])
    assert tally.megabytes < 500
    assert sum(tally.read.values()) > COUNT / 20, "some mistakes do not matter"
