"""What the theory of valley decoding claims (section 3.3 of arXiv 2606.21906), checked on simulated entropies.

The observed entropy of layer l = 1..L, in nats, is a noiseless curve S(l) and projection noise e(l):

    H(l)  = S(l) + e(l),  S(l) = H*(l) + r(l)
    H*(l) = plateau                                                        for l <= V_onset
            plateau - (plateau - lowest) (l - V_onset) / (V* - V_onset)    for V_onset < l <= V*
            lowest                                                         for l > V*
    r(l)  = rise (l - V*) / (L - V*) for l > V*, else 0                    the late perturbation
    e(l)  normal with mean 0 and sd noise early_factor^((L - l) / (L - 1)); layers k apart correlate by correlation^k

The paper has the idea that the entropy is such a sum. The rest is ours: the straight descent and rise, H* flat after
V*, one curve for all tokens, normal noise, and no floor at 0 nats. A floor is not needed, because rules only ask which
entropy is lower, and that is well defined below 0 too.

Four rules choose a layer in a window of K candidates, the layers [L-K+1, L]; w is the first of them:

    last       L
    algorithm  max{l <= L : l = w or H(l-1) >= H(l)}: Algorithm 1, which walks back while the entropy strictly falls
    theorem    max{l < L : l = w or H(l-1) >= H(l)}: Theorem 1's V-hat, which never compares L-1 with L
    argmin     the layer with the least H, the latest of equals

Theorem 1 names no window. We add "l = w", so that there is always a layer; without a window w = 1. The loss of a choice
is S(chosen) - min S over the window, which counts the late perturbation as real. If it were only an artefact of the
readout, the loss would be H*(chosen) - min H*, by which the last layer is never wrong. Tables have both losses.

Draws are independent. So means have normal 95 % intervals over draws. Shares have Wilson's intervals, whose width is
above 0 even for shares of 0 and 1. The same seed gives the same standard normal draws for any curve and noise, so all
points of a sweep share their draws.
"""

from layerlens.analysis.theory.chances import critical_rise, expected_gain, first_step, walk_depths
from layerlens.analysis.theory.curve import DRAWS, PAPER, SEED, Parameters, simulate
from layerlens.analysis.theory.fit import parameters_from, parameters_table, prediction_table
from layerlens.analysis.theory.premise import margins, premise_table
from layerlens.analysis.theory.rules import RULES, WINDOW, algorithm_layers, argmin_layers, last_layers, theorem_layers
from layerlens.analysis.theory.tables import dominance_table, forms_table, theorem_table

__all__ = [
    "DRAWS",
    "PAPER",
    "RULES",
    "SEED",
    "WINDOW",
    "Parameters",
    "algorithm_layers",
    "argmin_layers",
    "critical_rise",
    "dominance_table",
    "expected_gain",
    "first_step",
    "forms_table",
    "last_layers",
    "margins",
    "parameters_from",
    "parameters_table",
    "prediction_table",
    "premise_table",
    "simulate",
    "theorem_layers",
    "theorem_table",
    "walk_depths",
]
