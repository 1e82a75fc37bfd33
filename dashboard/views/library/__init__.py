"""The page Library: `columns`, `tables` (runs and groups), `actions` on chosen runs, `imports`, and `studies` and reports."""
