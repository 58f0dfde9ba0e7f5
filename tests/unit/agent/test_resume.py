"""A handover that is not for this machine or kernel."""

from __future__ import annotations

import os

import pytest
from handover.test_manifest import SAMPLE

from rekernel.agent.resume import HandoverRefusedError, _check_origin
from rekernel.carry.disks.entry import RootConfig
from rekernel.handover.config import AgentConfig
from rekernel.records import replace

CONFIG = AgentConfig("m", RootConfig("u", "ext4", 0, ""), (), None, None, "", (), ())


def test_ours() -> None:
    _check_origin(CONFIG, replace(SAMPLE, new_release=os.uname().release))


def test_of_another_machine() -> None:
    foreign = replace(SAMPLE, machine_id="n", new_release=os.uname().release)
    with pytest.raises(HandoverRefusedError, match=r"^the handover comes from another machine$"):
        _check_origin(CONFIG, foreign)


def test_for_another_kernel() -> None:
    with pytest.raises(HandoverRefusedError) as error:
        _check_origin(CONFIG, SAMPLE)
    assert str(error.value) == (
        f"the handover is meant for kernel 7.3, this is {os.uname().release}"
    )
