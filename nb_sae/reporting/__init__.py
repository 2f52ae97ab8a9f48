"""The parts of `nb_sae.report`: run a notebook, make its outputs safe to show, and build one page of them."""
