"""Decoding strategies and the two ways to run them: inside transformers' own `generate`, and in a loop of our own.

A strategy of your own needs `Strategy`, `Choice` and `Readouts`. Nothing is imported here, so that options can be
refused before torch is loaded.
"""
