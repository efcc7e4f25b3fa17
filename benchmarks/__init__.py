"""Benchmarks: commands that print what they measured, beside a bare psycopg loop in the same run."""
