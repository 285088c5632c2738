"""The engine process of one device: `python -m sjc_engine.worker`."""
