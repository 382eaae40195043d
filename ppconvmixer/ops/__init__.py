"""The CPU operator: all of ConvMixer but its head, forward and backward, in one call of C++.

``mixer.cpp`` computes, ``build`` makes a library of it on first use, ``mixer`` puts it into Paddle's
dynamic graph.
"""
