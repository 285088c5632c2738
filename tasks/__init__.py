"""Plain functions behind thin Prefect tasks: what a run reads, makes, keeps and shows."""
