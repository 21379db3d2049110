"""Whether an answer to the problems that come with layerlens is right. Texts alone are compared.

    last number       the last number that the text does not deny equals that of the reference
    number or words   the same where the reference is a number; else the text ends with its words, not denied

A text that was cut off is scored as it stands. A number of more than 1,000 characters is not read.
"""

from layerlens.evaluation.scoring.words import last_number, number_or_words

__all__ = ["last_number", "number_or_words"]
