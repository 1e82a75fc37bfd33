"""The referee: every figure of a run or a study, computed again from its exported files by other code.

The referee starts `python -m engine` as a user does, and imports nothing of the engine, so that a wrong formula there
cannot make the expected value wrong as well. `test_independence.py` holds that.
"""
