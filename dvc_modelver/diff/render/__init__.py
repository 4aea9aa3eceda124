"""Renderers: they print what `compare` decided, and decide nothing."""
