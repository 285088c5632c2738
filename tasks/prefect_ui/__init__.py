"""What tasks show on Prefect's pages, and cancelling from there."""
