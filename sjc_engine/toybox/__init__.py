"""The embedded prior and its judge: procedural toys, their renderer, training and weights."""
