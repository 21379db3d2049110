"""layerlens as a model of lm-eval, which loads no models of other packages by itself: see `layerlens lm-eval`."""
