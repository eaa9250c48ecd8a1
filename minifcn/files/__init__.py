"""What meets strangers' bytes and the disk. Reading order: weights, unpickle, download."""
