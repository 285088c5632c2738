"""Engine processes, one for each device, and the scenes that wait for them."""
