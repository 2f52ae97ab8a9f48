"""An executed notebook as one HTML file.

`report` is the door: run the notebook (`run`), make its outputs safe to show, and build one page of them (`page`).
"""
