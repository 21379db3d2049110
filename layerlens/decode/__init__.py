"""Decoding strategies and the two ways to run them: inside transformers' own `generate`, and in a loop of our own.

What a strategy of your own needs: `Strategy`, `Choice`, `Readouts`. Nothing is imported here, so that options can be
refused before torch is loaded.
"""
