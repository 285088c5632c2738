"""From a prompt to a field: scenes, their steps, losses, checkpoints and distillation to RGB."""
