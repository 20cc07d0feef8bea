"""NVIDIA GPUs: which there are, what compiles for them, and how fast it runs on one.

Only ``evotune.gpu.evaluator`` needs a GPU; importing needs neither torch nor Triton.
"""
