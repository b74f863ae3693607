"""Kernels written in Pallas, for accelerators whose compilers leave too much undone."""
