"""Answers to the same items under several conditions, and whether they are right.

evaluate    `ll.evaluate`: benchmarks under several strategies, run by inspect
arms        the strategies by the names that tables give them
benchmarks  what each benchmark asks, and how its answers are scored
sandbox     runs code that a model wrote, where it can do no harm
inspect     models of layerlens for inspect
lm_eval     models of layerlens for lm-eval
subject     what is evaluated, as inspect sees it
logs        inspect's logs as a table
traced      traces of the answers of an evaluation

runner      `ll.ablate`: every item under every arm and p, by our own loop
plan        what an ablation asks: arms, probabilities, items; needs no model
scoring     what is right there: two texts in, yes or no out; needs no torch
"""
