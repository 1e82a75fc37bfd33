"""The events of a run's log. This room imports `common` and `config`; `store` reads and writes the log."""
