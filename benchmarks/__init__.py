"""Measurements and trials for those who work on pgqueue; `pgqueue bench` has those for everybody."""
