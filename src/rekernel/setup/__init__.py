"""What `rekernel setup` does to a machine, once, and how it is taken back."""
