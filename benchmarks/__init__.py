"""Speed and memory beside PyTorch: `python -m benchmarks.cpu`. The story is in README.md here."""
