"""Data-parallel training: the rank processes, their process group, their shares of the data, and their steps."""
