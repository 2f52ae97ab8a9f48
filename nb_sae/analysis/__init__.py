"""From a dictionary and a store to polars frames, in one pass over the rows."""
