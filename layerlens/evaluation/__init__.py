"""Answers to the same items under several conditions, and whether they are right.

    plan      what is asked: arms of strategies, probabilities, items; needs no model
    scoring   what is right: two texts in, yes or no out; needs no torch
    runner    asks our own loop, and keeps the answers

A plan and its scoring can be used by the runner here, or by an evaluation library with a runner of its own.
"""
