"""`rekernel-lab zdtm`: CRIU's own test suite across an upgrade."""
