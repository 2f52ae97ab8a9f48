"""What data is biased about and what a classifier leans on, in terms of a dictionary's concepts.

`making` is the door: it reads rows (`rows`) and labels (`labels`), asks a classifier (`classifier`), and lets
`association`, `reliance`, `error_gaps` and `retrieval` make their tables, which `report` keeps; `mitigation` is asked
later, through `world`. `statistics` holds every interval and test, on plain arrays.
"""

from nb_sae.concepts.bias.making import bias_report
from nb_sae.concepts.bias.report import BiasReport

__all__ = ["BiasReport", "bias_report"]
