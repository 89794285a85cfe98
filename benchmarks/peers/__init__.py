"""Slow paths: the same computations on the same weights, written as the original computes them.

They are what the benchmarks compare with: plain, without any saving of work, and equal in result.
"""
