"""Whether the engine computes the right numbers on this device, and how fast: `acceptance.run`."""
