"""For all unit tests: on a machine that is busy nothing fails for being slow."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import settings

from rekernel.kernel import kept

settings.register_profile("rekernel", deadline=None)
settings.load_profile("rekernel")


@pytest.fixture(scope="session", autouse=True)
def kept_directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Nothing is kept on the machine that runs the tests."""
    kept.DIRECTORY = tmp_path_factory.mktemp("kept")
    return kept.DIRECTORY
