"""The flow that looks after a store's tables, for a schedule."""

from prefect import flow

from tasks.store import open_store
from tasks.tables.write import compact_store


@flow(name="maintain", flow_run_name="maintain {store}")
def maintain(store: str) -> dict[str, int]:
    """Merges each table of a store into one file; returns the number of files of each.

    Runs and readers may work meanwhile.
    """
    return compact_store(open_store(store))
