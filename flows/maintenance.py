"""The flow that looks after a store's tables, for a schedule."""

from prefect import flow

from tasks.compaction import compact_store
from tasks.store import open_store


@flow(name="maintain", flow_run_name="maintain {store}")
def maintain(store: str) -> dict[str, int]:
    """Seals every run and compacts every table of a store; returns the files of each table.

    Runs and readers may go on meanwhile.
    """
    return compact_store(open_store(store))
