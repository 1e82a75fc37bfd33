"""Data sets as numpy arrays. This room imports `common`, `config` and `system`."""
