"""Which families of models work, and how much memory a model will take."""
