"""Reads the machine: its devices, their readings while runs train, and interference by other programs.

Imports common, config, events, system, data, models, store and access.
"""
