"""The optimiser of a field: one learning rate for each kind of parameter."""

from __future__ import annotations

import torch

from sjc_engine.fields import Field
from sjc_engine.recipes import OptimizeRecipe


def make_optimizer(
    field: Field, recipe: OptimizeRecipe, factor: float = 1.0
) -> torch.optim.Optimizer:
    """The recipe's optimiser over the field, every learning rate times `factor`."""
    rates = {
        "density": recipe.density_lr or recipe.lr,
        "color": recipe.lr,
        "network": recipe.network_lr,
        "background": recipe.background_lr,
    }
    groups = [
        {"params": parameters, "lr": factor * rates[name]}
        for name, parameters in field.groups().items()
        if name != "background" or recipe.background == "learned"
    ]
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.Adamax
    return kind(groups, lr=factor * recipe.lr)
