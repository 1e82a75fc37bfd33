"""The tasks of a run.

Each one is a generator of events that `engine.runtime.worker` runs and writes to the event log.
"""
