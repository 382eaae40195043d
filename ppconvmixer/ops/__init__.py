"""The CPU operator: all of ConvMixer but its head, forward and backward, in one call of C++.

``training.cpp`` and ``inference.cpp`` compute, ``build`` makes a library of them on first use, ``mixer``
puts it into Paddle's dynamic graph. Where it cannot be had, ``rewrite`` takes its place.
"""
