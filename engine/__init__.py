"""Isoflop's engine: runs short real training and inference, records everything, decides nothing for you unseen."""

__version__ = "0.1.0"
