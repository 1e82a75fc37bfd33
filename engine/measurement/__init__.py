"""Figures of runs with their provenance: cost, energy, calibrations, step breakdown and alerts. It reads recorded events.

Imports every room above it up to planning.
"""
