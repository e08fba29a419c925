"""Models with latent structure: they take banks and never name a family."""
