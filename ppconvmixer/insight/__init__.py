"""What a network is and does, and why a training run goes wrong: measured on real models and data.

A module that a command of ``ppconvmixer inspect`` shows has functions that return data (for programs and for
``--json``), ``table`` of them for people, and ``draw`` that makes a picture of them; the others are what those share.
"""
