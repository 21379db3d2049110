"""Tracing: what every layer does to every token, as a run directory. Import from `tracer` and `options`.

Nothing is imported here, so that options can be refused before torch is loaded.
"""
