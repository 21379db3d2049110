"""Self-speculative decoding: a draft leaves blocks out, and the whole model checks what it proposed."""
