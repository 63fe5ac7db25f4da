"""Contract suites: every implementation of a port runs its suite."""
