"""The science: score the teacher, cut it, distil, measure. Importable and testable without Ray."""
