"""Scripts that print a table and write a dated report below ``benchmarks/reports``."""
