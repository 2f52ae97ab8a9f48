"""Activations as rows on disk.

`activation_store` is the door. Writing: `collect` (what to do) → `pipeline` (shard by shard) → `decoding` (worker
processes) and `capturing` (the model). On disk: `manifest` and `files`. Reading: `view` → `reading`; `importing` takes
rows that somebody else made.
"""

from nb_sae.store.activation_store import ActivationStore

__all__ = ["ActivationStore"]
