"""The page Compare: `form` (what races), `result` and `table` (a race and its verdict), `chosen_runs` (runs of the library)."""
