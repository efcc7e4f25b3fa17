"""pgqueue beside its alternatives: the same workloads, one system at a time (`python -m benchmarks.peers`)."""
