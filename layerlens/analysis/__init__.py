"""What a run's records say, as small tables with intervals. Nothing here needs a model or a GPU."""

from layerlens.analysis.layers import by_layer, entropy_curves
from layerlens.analysis.partition import partition
from layerlens.analysis.phases import phases
from layerlens.analysis.substitutions import substitutions
from layerlens.analysis.valleys import valleys

__all__ = ["by_layer", "entropy_curves", "partition", "phases", "substitutions", "valleys"]
