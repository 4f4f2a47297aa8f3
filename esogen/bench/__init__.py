"""Measuring: every figure in `docs/benchmarks.md` comes from here."""
