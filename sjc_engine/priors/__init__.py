"""2D diffusion models as denoisers: the contract, their weights, one module a family."""
