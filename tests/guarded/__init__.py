"""Every op in memory that faults on the first byte behind a buffer or before it."""
