"""Diffusion policies: methods that diffuse actions."""
