"""Answers to the same items under several conditions, and whether they are right.

evaluate    `ll.evaluate`: benchmarks under several strategies, run by inspect
ablation    `ll.ablate`: the same with strategies that act with a probability
asked       what is asked, checked as far as that needs no model
arms        the strategies by the names that tables give them
benchmarks  what each benchmark asks, and how its answers are scored
sandbox     runs code that a model wrote, where it can do no harm
inspect     models of layerlens for inspect
lm_eval     models of layerlens for lm-eval
subject     what is evaluated, as inspect sees it
logs        inspect's logs as a table
traced      traces of the answers of an evaluation
scoring     what is right for the problems that come with layerlens; needs neither inspect nor torch
"""
