"""rekernel: change the kernel under a running machine, and put user space back."""

__version__ = "0.1.0"
