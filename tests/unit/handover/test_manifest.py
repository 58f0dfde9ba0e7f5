"""The manifest is a contract between two kernels' programs: kept to the letter, or refused."""

from __future__ import annotations

import json
import typing
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rekernel.carry.cgroups.entry import Cgroup
from rekernel.carry.disks.entry import RootConfig
from rekernel.carry.memory.entry import Extent, Memory
from rekernel.carry.mounts.entry import Mount
from rekernel.carry.network.entry import Link, Network
from rekernel.criu.entry import Inherited
from rekernel.handover.config import AgentConfig, dump_config, load_config
from rekernel.handover.manifest import (
    SCHEMA,
    Clock,
    Host,
    Manifest,
    Phase,
    Tree,
    dump,
    load,
)
from rekernel.records import fields, is_record
from rekernel.typed_json import ShapeError

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=5,
)


def made(kind: Any, **fixed: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    """Records of a class: what must be given is ``fixed``, or anything of its type."""
    hints = typing.get_type_hints(kind)
    anything = {
        name: made(hints[name]) if is_record(hints[name]) else st.from_type(hints[name])
        for name, item in fields(kind).items()
        if item.required and name not in fixed
    }
    return st.builds(kind, **anything, **fixed)


def lists_of(kind: type, **fixed: Any) -> st.SearchStrategy[Any]:
    return st.lists(made(kind, **fixed), max_size=2).map(tuple)


texts = st.dictionaries(st.text(), st.text(), max_size=3)
words = st.lists(st.text(), max_size=3).map(tuple)
extents = st.none() | made(Extent)

manifests = made(
    Manifest,
    schema=st.just(SCHEMA),
    clock=made(Clock),
    memory=made(
        Memory, region=extents, occupied=lists_of(Extent), free=lists_of(Extent), store=extents
    ),
    host=made(
        Host,
        mounts=lists_of(Mount, data=st.text(), contents=st.text(), transient=st.booleans()),
        directories=words,
        prefetch=words,
        files=texts,
        fifos=words,
        network=made(Network, links=lists_of(Link)),
        sysctls=texts,
        systemd_units=texts,
    ),
    trees=lists_of(
        Tree,
        argv=words,
        cgroups=texts,
        inherited=lists_of(
            Inherited, path=st.text(), flags=st.integers(0, 1 << 31), header=st.text()
        ),
    ),
    cgroups=lists_of(Cgroup, passed_on=st.text(), settings=texts),
    init=words,
    phases=lists_of(Phase, side=st.text()),
    report=st.dictionaries(st.text(), json_values, max_size=3),
)

configs = made(
    AgentConfig,
    modules=st.lists(words, max_size=3).map(tuple),
    region=extents,
    store=extents,
    init=words,
    criu_check=words,
    prefetch=words,
)


@settings(max_examples=40, suppress_health_check=[HealthCheck.too_slow])
@given(manifests)
def test_round_trip(manifest: Manifest) -> None:
    assert load(dump(manifest)) == manifest


@settings(max_examples=40)
@given(configs)
def test_round_trip_of_the_configuration(config: AgentConfig) -> None:
    assert load_config(dump_config(config)) == config


def test_names_that_are_no_utf8_survive() -> None:
    root = RootConfig("u", "ext4", 0, "latin\udcfc")
    config = AgentConfig("id", root, (), None, None, "", ("/sbin/init",), ())
    assert load_config(dump_config(config)) == config


SAMPLE = Manifest(
    schema=SCHEMA,
    id="1",
    machine_id="m",
    old_release="6.12",
    new_release="7.3",
    clock=Clock(1, 2, 3),
    frozen_ns=4,
    memory=Memory("region", Extent(0, 9), (Extent(1, 2),), (), None),
    host=Host(
        mounts=(Mount("/run", "tmpfs", "tmpfs", 0),),
        directories=("/run/x",),
        prefetch=(),
        files={"/run/y": "z"},
        fifos=("/run/z",),
        network=Network("", "", {"ip x": "y"}, (Link("eth0", "52:54:00:00:00:01"),), ""),
        hostname="h",
        sysctls={"vm/max_map_count": "1"},
        systemd_header="",
        systemd_units={"t.service": ""},
    ),
    trees=(
        Tree("t", "t.service", 7, "images/t", ("criu",), (Inherited("file", "a"),), {"7": "/"}),
    ),
    cgroups=(Cgroup("/a", 7, 8, "memory", {"pids.max": "9"}), Cgroup("/a/b")),
    patience_s=120,
    highest_pid=7,
    init=("/sbin/init",),
)


def sample() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads(dump(SAMPLE))
    return raw


REQUIRED = [name for name, item in fields(Manifest).items() if item.required]


@pytest.mark.parametrize("name", [name for name in REQUIRED if name != "schema"])
def test_a_missing_field_is_named(name: str) -> None:
    raw = sample()
    del raw[name]
    with pytest.raises(ShapeError, match=f"^the manifest has no {name}$|manifest has no {name}"):
        load(json.dumps(raw).encode())


@pytest.mark.parametrize("name", [name for name in REQUIRED if name != "schema"])
def test_a_wrong_type_is_named(name: str) -> None:
    raw = sample()
    raw[name] = 1.5
    with pytest.raises(ShapeError, match=f"manifest.{name} is no "):
        load(json.dumps(raw).encode())


@pytest.mark.parametrize("name", [name for name, item in fields(Host).items() if item.required])
def test_a_resource_that_is_missing_or_wrong_is_named(name: str) -> None:
    raw = sample()
    raw["host"][name] = 1.5
    with pytest.raises(ShapeError, match=f"^manifest.host.{name} is no "):
        load(json.dumps(raw).encode())
    del raw["host"][name]
    with pytest.raises(ShapeError, match=f"^manifest.host has no {name}$"):
        load(json.dumps(raw).encode())


def test_fields_with_defaults_may_be_missing_and_unknown_ones_are_passed_over() -> None:
    raw = sample()
    del raw["phases"], raw["report"], raw["host"]["mounts"][0]["transient"]
    raw["of a later version"] = raw["clock"]["too"] = 1
    assert load(json.dumps(raw).encode()) == SAMPLE


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("trees", 0, "root_pid"), "7", "manifest.trees[0].root_pid is no int"),
        (("trees", 0, "root_pid"), True, "manifest.trees[0].root_pid is no int"),
        (("trees", 0, "argv"), "criu", "manifest.trees[0].argv is no list"),
        (("trees", 0, "argv", 0), None, "manifest.trees[0].argv[0] is no str"),
        (("trees", 0, "cgroups", "7"), 1, "manifest.trees[0].cgroups['7'] is no str"),
        (("trees", 0, "cgroups"), [], "manifest.trees[0].cgroups is no object"),
        (("host", "mounts", 0, "transient"), 1, "manifest.host.mounts[0].transient is no bool"),
        (("memory", "region"), [1, 2], "manifest.memory.region is no object"),
        (("memory", "region"), {"start": 1}, "manifest.memory.region has no end"),
        (("host", "files", "/run/y"), ["z"], "manifest.host.files['/run/y'] is no str"),
        (("clock",), None, "manifest.clock is no object"),
    ],
)
def test_where_it_is_wrong(path: tuple[Any, ...], value: object, message: str) -> None:
    raw = sample()
    inner: Any = raw
    for step in path[:-1]:
        inner = inner[step]
    inner[path[-1]] = value
    with pytest.raises(ShapeError) as error:
        load(json.dumps(raw).encode())
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "the manifest is no JSON: "),
        (b'{"schema": 1', "the manifest is no JSON: "),
        (b"\xff\xfe\xfd", "the manifest is no JSON: "),
        (b"[1]", "the manifest is no JSON object"),
        (b'{"schema": 2}', "the manifest has schema 2, this agent understands 1"),
        (b'{"schema": "1"}', "the manifest has schema '1', this agent understands 1"),
        (b"{}", "the manifest has schema None, this agent understands 1"),
    ],
)
def test_not_our_manifest(data: bytes, message: str) -> None:
    with pytest.raises(ShapeError) as error:
        load(data)
    assert str(error.value).startswith(message)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({}, "configuration has no machine_id"),
        ({"machine_id": 1}, "configuration.machine_id is no str"),
    ],
)
def test_damaged_configuration(data: dict[str, object], message: str) -> None:
    with pytest.raises(ShapeError) as error:
        load_config(data)
    assert str(error.value).startswith(message)
