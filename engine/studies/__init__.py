"""Studies of several runs (races, batch-size law, scaling, inference, loss surface): their plans, results and sentences.

Nothing is measured here. Imports every room above it up to measurement.
"""
