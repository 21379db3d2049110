"""Decoding strategies and the two ways to run them: inside transformers' own `generate`, and in a loop of our own."""

from layerlens.decode.contrast import SLED, DoLa
from layerlens.decode.criteria import CRITERIA
from layerlens.decode.dropin import decoding
from layerlens.decode.log import DecodingLog
from layerlens.decode.loop import Generation, generate
from layerlens.decode.names import named_strategy, register_strategy, strategy_names
from layerlens.decode.readouts import Readouts
from layerlens.decode.strategies import Choice, Fixed, Last, Strategy, Valley

__all__ = [
    "CRITERIA",
    "SLED",
    "Choice",
    "DecodingLog",
    "DoLa",
    "Fixed",
    "Generation",
    "Last",
    "Readouts",
    "Strategy",
    "Valley",
    "decoding",
    "generate",
    "named_strategy",
    "register_strategy",
    "strategy_names",
]
