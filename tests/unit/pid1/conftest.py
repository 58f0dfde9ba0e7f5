"""What is said goes to a file."""

from said import said

__all__ = ["said"]
