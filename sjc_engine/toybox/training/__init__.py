"""How the toybox models were made: procedural toys, their ray-caster, and training."""
