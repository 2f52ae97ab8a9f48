"""Inputs: numbered collections of images or texts with their own ids, and the drawn faces."""
