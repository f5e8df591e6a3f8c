"""Inference of ternary ResNets on a CUDA GPU with Triton kernels that read weights of 2 bits.

runtime.py     `PackedGpuRuntime`: from a packed file or a trained network to logits
layers.py      layers with packed weights, and the launches of the kernels
packing.py     packing of symbols into 2 bits for these kernels
kernels.py     the Triton kernels; imported only when a network is made to run, as Triton is optional
"""
