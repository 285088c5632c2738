"""The Prefect server of a run: its start, environment, schedules, heartbeats and shutdown."""
