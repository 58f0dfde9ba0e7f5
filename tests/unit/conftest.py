"""For all unit tests: on a machine that is busy nothing fails for being slow."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("rekernel", deadline=None)
settings.load_profile("rekernel")
