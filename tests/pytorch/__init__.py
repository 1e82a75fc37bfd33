"""Tests of engine/pytorch."""
