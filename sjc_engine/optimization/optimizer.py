"""The optimiser of a field: one learning rate for each kind of parameter."""

from __future__ import annotations

import torch

from sjc_engine.fields.field import Field
from sjc_engine.recipes import OptimizeRecipe
from sjc_engine.rendering.fused import fits


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
    if recipe.optimizer == "adam":  # fused: 2.9 instead of 34 ms for 5 million numbers on a core
        return torch.optim.Adam(groups, lr=factor * recipe.lr, fused=True)
    if field.device.type == "cpu" and fits(field):
        from sjc_engine.optimization.adamax import OnePassAdamax

        return OnePassAdamax(groups, lr=factor * recipe.lr)
    return torch.optim.Adamax(groups, lr=factor * recipe.lr)
