"""rekernel-lab: virtual machines with real Debian kernels in which rekernel is tried out."""
