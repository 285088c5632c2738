"""What people see of a run: on the terminal, on Prefect's pages, and as a table at its end."""
