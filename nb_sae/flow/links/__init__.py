"""Which latents continue which: decoder rows matched between sites, with what chance gives."""
