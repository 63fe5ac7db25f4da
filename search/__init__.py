"""The domain: what a search is, which architectures fit, who is best. No torch, transformers, Ray or HTTP."""
