"""Families of diffusion models, one module each, behind `sjc_engine.priors.denoiser`."""
