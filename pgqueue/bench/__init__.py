"""Benchmarks for users, in a schema of their own: each module measures one thing and prints nothing."""
