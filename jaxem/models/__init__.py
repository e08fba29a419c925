"""Latent structure over banks; models name no family."""
