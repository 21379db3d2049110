"""Which families of models work, and what a model will take."""
