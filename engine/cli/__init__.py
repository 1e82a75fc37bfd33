"""The command line, `python -m engine`: one file per group of commands; main.py parses the arguments.

This package can import every other room of the engine, but nothing that imports PyTorch.
"""
