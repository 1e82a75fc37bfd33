"""Isoflop's engine: it trains and runs small models, measures them and records the results."""

__version__ = "0.1.0"
