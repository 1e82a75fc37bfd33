"""The page Scale: `form` (which training, on how many ranks) and `result` (the study and its verdict)."""
