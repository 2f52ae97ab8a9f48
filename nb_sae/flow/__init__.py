"""Features across layers: which latents carry on, change and are born, from decoder directions and on data."""
