"""What latents mean and what data is biased about: names, search, steering and bias, as tables."""
