"""The torch-free half of each model family."""
