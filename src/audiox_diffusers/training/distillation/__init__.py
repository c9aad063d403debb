"""Distillation of a diffusion model into one that needs a few steps and no guidance."""
