"""What several benchmarks share: peers, workloads, timing, tables, the command line."""
