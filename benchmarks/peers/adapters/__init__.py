"""One module a system, each with a class `System` that `benchmarks.peers.adapter` describes."""
