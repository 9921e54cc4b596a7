"""Files and messages of somebody who means harm."""

import copy
import json
import os
import random
import resource
import shutil
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zstandard
from safetensors import SafetensorError
from safetensors.torch import load
from torch import nn

from faults_counted import Count, Result, forked, outcome
from slipstream import Recorder, Trajectory
from slipstream.federated import Server, follow
from slipstream.federated.messages import Reply
from slipstream.storage.strict_json import checked_json, read_checked_json
from slipstream.trajectory import check_run

SECONDS, MEMORY = 10, 2 << 30  # that opening a hostile file may take
WEIRD: list[Any] = [
    *(None, True, -1, 0, 1, 2**31, 2**63, 10**400, 0.5, 1e308, "", "abc", "F32", "../x", "\0"),
    *("é" * 1000, "/etc/passwd", [], {}, [[]], [-1, -1], [2**40, 2**40], ["x"], {"a": 1}),
]


def spoilt(data: Any, chance: random.Random) -> Any:
    """Plain data, one value of which is replaced, removed, or nested deeply."""
    data = copy.deepcopy(data)
    where: list[tuple[Any, Any]] = []

    def collect(value: Any) -> None:
        for key in range(len(value)) if isinstance(value, list) else list(value):
            where.append((value, key))
            if isinstance(value[key], dict | list):
                collect(value[key])

    collect(data)
    holder, key = chance.choice(where)
    kind = chance.random()
    if kind < 0.15:
        del holder[key]
    elif kind < 0.25:
        nested: Any = holder[key]
        for _ in range(chance.choice((2, 900))):
            nested = [nested]
        holder[key] = nested
    elif kind < 0.35 and isinstance(holder, dict):
        holder[chance.choice(("__metadata__", "", "extra", "x" * 10000))] = holder.pop(key)
    elif kind < 0.5 and type(holder[key]) is int:
        holder[key] += chance.choice((-1, 1, 4, -(2**33), 2**33))
    else:
        holder[key] = copy.deepcopy(chance.choice(WEIRD))
    return data


def hostile_json(data: Any, chance: random.Random) -> bytes:
    """A spoilt JSON text; some of it is none."""
    kind = chance.random()
    if kind < 0.8:
        return json.dumps(spoilt(data, chance)).encode()
    text = json.dumps(data)
    if kind < 0.85:
        return ("[" * 100_000 + "]" * 100_000).encode()
    if kind < 0.9:
        return text.replace("{", '{"a": 1, "a": NaN, ', 1).encode()
    if kind < 0.95:
        return text[: chance.randrange(len(text))].encode()
    return bytes(chance.randrange(256) for _ in range(chance.randrange(200)))


def unlist_checksums(run: Path) -> None:
    """Write the index as version 0.1 did: what a hostile file says is then all there is."""
    lines = (run / "snapshots.jsonl").read_bytes().splitlines()
    kept = [line for line in map(read_checked_json, lines) if "amends" not in line]
    for line in kept:
        line.pop("checksums")
    text = "".join(json.dumps(line) + "\n" for line in kept)
    (run / "snapshots.jsonl").write_text(text)


def spoil_header(run: Path, chance: random.Random) -> None:
    """Spoil the header of a plain snapshot, or its length."""
    file = run / "snapshots" / "00000001.safetensors"
    whole = file.read_bytes()
    size = int.from_bytes(whole[:8], "little")
    header = hostile_json(json.loads(whole[8 : 8 + size]), chance)
    length = len(header) if chance.random() < 0.9 else chance.choice((0, 1, 2**20, 2**63 + 1))
    tail = whole[8 + size :] + bytes(chance.choice((0, 0, 1, 64)))
    file.write_bytes(length.to_bytes(8, "little") + header + tail)


def spoil_packed(run: Path, chance: random.Random) -> None:
    """Spoil the description of a packed snapshot, or its blocks."""
    file = run / "snapshots" / "00000001.packed"
    whole = file.read_bytes()
    end = len(whole) - 16
    start = end - int.from_bytes(whole[end : end + 8], "little")
    described = json.loads(zstandard.ZstdDecompressor().decompress(whole[start:end]))
    blocks, text = bytearray(whole[:start]), json.dumps(described).encode()
    kind = chance.random()
    if kind < 0.5:
        text = hostile_json(described, chance)
    elif kind < 0.75:
        header = hostile_json(json.loads(described["header"]), chance)
        text = json.dumps(described | {"header": header.decode("latin1")}).encode()
    else:
        for _ in range(chance.randrange(1, 20)):
            blocks[chance.randrange(len(blocks))] = chance.randrange(256)
    packed = zstandard.ZstdCompressor().compress(text)
    if kind < 0.02:
        packed = bytes.fromhex("28b52ffde0 0000000000000010 010000")  # a frame of 2^60 bytes
    length = len(packed) if chance.random() < 0.95 else chance.choice((0, 2**20, 2**63 + 1))
    file.write_bytes(bytes(blocks) + packed + length.to_bytes(8, "little") + b"SLIPPACK")


def spoil_description(run: Path, chance: random.Random) -> None:
    """Spoil run.json, with a right checksum or without one."""
    file = run / "run.json"
    text = hostile_json(read_checked_json(file.read_bytes()), chance)
    with suppress(ValueError, TypeError, RecursionError):  # what is not plain data stays
        text = checked_json(json.loads(text)) if chance.random() < 0.5 else text
    file.write_bytes(text)


def spoil_index(run: Path, chance: random.Random) -> None:
    """Spoil a line of the index, with a right checksum or without one."""
    file = run / "snapshots.jsonl"
    lines = file.read_bytes().splitlines(keepends=True)
    number = chance.randrange(len(lines))
    text = hostile_json(read_checked_json(lines[number]), chance)
    try:
        text = checked_json(json.loads(text)) if chance.random() < 0.5 else text + b"\n"
    except (ValueError, TypeError, RecursionError):
        text += b"\n"
    file.write_bytes(b"".join((*lines[:number], text, *lines[number + 1 :])))


def spoil_kind(run: Path, chance: random.Random) -> None:
    """Put something else in the place of a file."""
    names = ("run.json", "snapshots.jsonl", "snapshots/00000001", ".lock", "snapshots")
    file = run / chance.choice(names)
    if file.name == "00000001":
        file = next(iter(file.parent.glob(f"{file.name}.*")))
    if file.is_dir():
        shutil.rmtree(file)
    file.unlink(missing_ok=True)
    kind = chance.choice(("pipe", "folder", "/dev/zero", "/etc/passwd", "/nowhere", "itself", "0"))
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind == "0":
        file.write_bytes(b"")
    else:
        file.symlink_to(file if kind == "itself" else kind)


def open_all(run: Path) -> str:
    """Open and reopen a run in every way, within bounds; return what is wrong, "" or "noticed"."""
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MEMORY, used + MEMORY))
    signal.alarm(SECONDS)

    def snapshots() -> None:
        for snapshot in Trajectory.open(run):
            snapshot.state_dict()

    def tensors() -> None:
        trajectory = Trajectory.open(run)
        for name in trajectory.names:
            trajectory[name]

    def resumed() -> None:
        with Recorder(run, nn.Sequential(nn.Linear(16, 8), nn.BatchNorm1d(8)), resume=True):
            pass

    ways = (lambda: check_run(run), snapshots, tensors, resumed)
    found = [outcome(way) for way in ways]
    if faults := [f"{way}: {fault}" for way, (_, fault, _) in enumerate(found) if fault]:
        return faults[0]
    noticed = any(noticed for *_, noticed in found) or bool(found[0][0])
    if not found[1][2]:
        for file in (run / "snapshots").glob("*.safetensors"):
            try:
                load(file.read_bytes())
            except SafetensorError as error:
                return f"read, though the library says {error}"
    return "noticed" if noticed else ""


SPOIL: dict[str, tuple[str, Callable[[Path, random.Random], None]]] = {
    "safetensors header": ("plain", spoil_header),
    "packed file": ("packed", spoil_packed),
    "run.json": ("plain", spoil_description),
    "index line": ("plain", spoil_index),
    "pipe, link, folder or device": ("plain", spoil_kind),
    "the same in a packed run": ("packed", spoil_kind),
}


def hostile_files(
    count: int, runs: Mapping[str, Path], folder: Path, chance: random.Random
) -> Iterator[Result]:
    """Spoil the files of a run on purpose."""
    for name, (kind, spoil) in SPOIL.items():
        counted = Count(f"hostile: {name}")
        for number in range(count):
            run = folder / f"hostile{number}"
            shutil.copytree(runs[kind], run)
            unlist_checksums(run)
            spoil(run, chance)
            told, code = forked(lambda run=run: open_all(run))
            fault = f"{number}: {told}" if told not in ("", "noticed") else ""
            if code:
                fault = f"{number}: the process ended with {code}"
            counted.add(noticed=told == "noticed", fault=fault)
            shutil.rmtree(run)
        yield counted.result()


def replies(server: Server) -> dict[int, Reply]:
    """What three honest clients answer."""
    found = {}
    for node in (1, 2, 3):
        client = follow(None, server.order(node))
        moved = {
            n: v + 0.1 * node if v.is_floating_point() else v for n, v in client.weights.items()
        }
        _, found[node] = client.reply(moved, examples=node)
    return found


def spoilt_reply(reply: Reply, chance: random.Random) -> Reply:
    """A reply that no honest client sends."""
    arrays = dict(reply.arrays)
    name = chance.choice(sorted(n for n, a in arrays.items() if a.size))
    array = arrays[name]
    nan = array.astype(array.dtype)
    if nan.dtype.kind == "f":
        nan.reshape(-1)[chance.randrange(nan.size)] = chance.choice((np.nan, np.inf, -np.inf))
    else:
        nan = nan.astype(np.float16)
    ways: list[Callable[[], Reply]] = [
        lambda: replace(reply, examples=chance.choice((-1, "3", None, [], 10**400, 0.0, True))),
        lambda: replace(reply, version=chance.choice((-1, 7, 2**70, "0", None, [0]))),
        lambda: replace(reply, checksum=chance.choice((-1, 2**70, "0", None, [0]))),
        lambda: replace(reply, arrays=chance.choice((None, "abc", [], 3, {"": 0}, {3: array}))),
        lambda: replace(reply, arrays={n: a for n, a in arrays.items() if n != name}),
        lambda: replace(reply, arrays=arrays | {f"{name}x": array}),
        lambda: replace(reply, arrays=arrays | {name: nan}),
        lambda: replace(reply, arrays=arrays | {name: array.reshape(1, *array.shape)}),
        lambda: replace(reply, arrays=arrays | {name: np.concatenate([array.reshape(-1)] * 2)}),
        lambda: replace(
            reply,
            arrays=arrays | {name: array.astype(chance.choice(["c8", "f8", "i2", "S3", "O"]))},
        ),
        lambda: replace(
            reply, arrays=arrays | {name: chance.choice((None, "x", array.tolist(), 1.0))}
        ),
        lambda: chance.choice((None, "reply", b"\0" * 100, {}, 3)),
    ]
    return chance.choice(ways)()


def messages(count: int, chance: random.Random) -> Result:
    """Have one of three clients send something else."""
    counted = Count("hostile message of a federated client")

    def model() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3))

    alone = Server(model())
    honest = replies(alone)
    for node in (1, 2):
        alone.accept(node, honest[node])
    alone.finish_round()
    for _ in range(count):
        server = Server(model())
        given = replies(server)
        given[3] = spoilt_reply(given[3], chance)
        try:
            for node, reply in given.items():
                server.accept(node, reply)
            done = server.finish_round()
            same = all(torch.equal(v, server.weights[n]) for n, v in alone.weights.items())
            fault = "" if done.accepted == (1, 2) and same else f"{given[3]!r:.150} was accepted"
        except Exception as error:  # ruff: ignore[blind-except] - any is a fault
            fault = f"{error!r:.100} of {given[3]!r:.100}"
        counted.add(noticed=not fault, fault=fault)
    return counted.result()
