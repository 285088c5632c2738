"""`sjc compact`."""

import json
import sys

from tasks.store import open_store
from tasks.tables import compact_store


def run(url: str, *, quiet: bool, as_json: bool) -> None:
    """Compacts and prints the number of files of each table."""

    def tell(line: str) -> None:
        if not quiet:
            print(line, file=sys.stderr, flush=True)

    open_store(url, writable=False)  # one that is not there must not be made
    store = open_store(url)
    counts = compact_store(store, tell)
    if as_json:
        print(json.dumps({"files": counts, "tables": store.uri("tables")}, indent=1))
        return
    for table, count in counts.items():
        print(f"{table}: {count} file{'s' * (count != 1)}")
    print(f"tables: {store.uri('tables')}")
