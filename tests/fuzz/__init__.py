"""A seeded differential fuzzer of every op: drawn calls, judged by the oracles and by comparing the backends."""
