"""One file a protocol; each registers what it defines."""
