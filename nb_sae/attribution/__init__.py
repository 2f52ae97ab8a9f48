"""What a latent reads, what it writes, and what an output owes to it: heads and sources, lenses, attribution."""
