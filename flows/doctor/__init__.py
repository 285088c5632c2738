"""What `sjc doctor` looks at: devices, and with --benchmark what they compute and how fast."""
