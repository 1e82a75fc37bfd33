"""Files, locks, processes and the disk: what the operating system provides. This room imports `common` only."""
