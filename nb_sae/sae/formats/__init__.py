"""Dictionaries in the formats of other libraries: `load_dictionary`, `export_dictionary`, and the Hugging Face Hub."""

from nb_sae.sae.formats.door import FORMATS, export_dictionary, load_dictionary
from nb_sae.sae.formats.publish import push_to_hub

__all__ = ["FORMATS", "export_dictionary", "load_dictionary", "push_to_hub"]
