"""Prefect flows, and the command line `sjc` that runs them."""
