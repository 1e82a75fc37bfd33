"""The configuration of a run, and its form as JSON, assignments and text. This room imports `common` only."""
