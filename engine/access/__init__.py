"""Settings of a store, roles and permissions, and its secrets.

Imports the rooms below it (common, system, config, data); nothing here knows HTTP.
"""
