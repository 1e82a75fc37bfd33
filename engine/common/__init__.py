"""Helpers without a subject of their own: errors, units, text. This room imports no other room."""
