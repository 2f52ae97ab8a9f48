"""Sparse autoencoders: configuration, model, training session, and the dictionary that comes out of it."""
