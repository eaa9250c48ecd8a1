"""Reading files that others made, and writing files safely.

Reading order: regular, atomic, outputs, zips, weights, unpickle, foreign, download."""
