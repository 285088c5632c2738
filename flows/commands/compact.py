"""`sjc compact`: a store's tables in fewer files."""

import json

from flows.commands import options
from flows.commands.app import command


@command(
    "sjc compact",
    "sjc compact --store s3://bucket/first",
    interrupted="the tables are valid as they are; run it again to finish",
)
def compact(
    store: options.Store = "./store", quiet: options.Quiet = False, json_: options.Json = False
) -> None:
    """Merge each table's files into one; readers and runs may go on meanwhile."""
    from flows.progress.terminal import terminal_watcher
    from tasks.store import open_store
    from tasks.tables.write import compact_store

    open_store(store, writable=False)  # one that is not there must not be made
    opened = open_store(store)
    counts = compact_store(opened, terminal_watcher(quiet=quiet).note)
    if json_:
        print(json.dumps({"files": counts, "tables": opened.uri("tables")}, indent=1))
        return
    for table, count in counts.items():
        print(f"{table}: {count} file{'s' * (count != 1)}")
    print(f"tables: {opened.uri('tables')}")
