"""Tune GPU kernels with evolving programs, a Gaussian-process screen, and timings you can trust."""
