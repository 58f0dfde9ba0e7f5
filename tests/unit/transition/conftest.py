"""The machine that whole attempts run on."""

from __future__ import annotations

from transition.machine import machine, two_processes

__all__ = ["machine", "two_processes"]
