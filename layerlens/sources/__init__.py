"""Where files come from: the model hub, and what comes with layerlens."""
