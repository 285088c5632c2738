"""The store's JSON, which is the truth: attempts, assets, runs, and verifying all of it."""
