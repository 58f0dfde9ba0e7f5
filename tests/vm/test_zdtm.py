"""CRIU's own test suite as services, all carried at once."""

from __future__ import annotations

import pytest

from rekernel_lab.progress import Progress
from rekernel_lab.scenario.assemble import Options
from rekernel_lab.zdtm import command
from vm.support import NEW, OLD

pytestmark = pytest.mark.slow


def test_all_that_criu_alone_can_carry_comes_across() -> None:
    request = command.Request(Progress(), Options(), kernel_from=OLD, upgrades=(NEW,))
    # What was lost, and why, is in the table that it prints.
    assert command.zdtm(request) == 0
