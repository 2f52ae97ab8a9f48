"""Models that can be hooked: open_clip and language models, the user's own, and the two shipped inside."""
