"""Runs on disk: folders, event logs, the SQLite index over them, and lists of runs.

Imports common, system, data, config and events; knows no process that trains.
"""
