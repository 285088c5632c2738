"""The toys, by kind of thing."""
