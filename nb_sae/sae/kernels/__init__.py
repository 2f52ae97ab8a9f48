"""Ways to compute a nested loss, all exact: chosen by device, dtype and shape in `nb_sae.sae.nested`.

`dense` works everywhere and waits for nothing, `cpu` gathers on a processor, `gpu` gathers with Triton on CUDA.
"""
