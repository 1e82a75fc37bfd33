"""`python -m engine`: the commands, one file for each group of them; main.py reads the arguments."""
