"""Versions, stages and history: tags in GTO's grammar, and what commits recorded."""
