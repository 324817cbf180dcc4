"""Runs checks in several processes on this machine, which talk through gloo, and collects what failed."""

from __future__ import annotations

import importlib
import os
import socket
import traceback
from multiprocessing.queues import SimpleQueue
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp


def _free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return int(s.getsockname()[1])


def _work(rank: int, world: int, port: int, names: list[str], folder: str, queue: SimpleQueue[Any]) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port), RANK=str(rank), WORLD_SIZE=str(world))
    torch.set_num_threads(1)
    dist.init_process_group("gloo", rank=rank, world_size=world)
    for name in names:
        module, _, function = name.partition(".")
        try:
            getattr(importlib.import_module(module), function)(rank, world, folder)
            found = None
        except Exception:
            found = traceback.format_exc()
        every: list[Any] = [None] * world
        dist.all_gather_object(every, found)
        if rank == 0:
            queue.put((name, [f"process {i}:\n{text}" for i, text in enumerate(every) if text]))
    dist.barrier()
    os._exit(0)  # threads of gloo may still run, and end a process that waits for them with an abort


def run(names: list[str], world: int, folder: str) -> dict[str, list[str]]:
    """Run functions, each ``f(rank, world, folder)``, in some processes; return the failures by name.

    Args:
        names: The functions as ``MODULE.NAME``, in their order.
        world: How many processes.
        folder: What is handed to the functions.
    """
    queue: SimpleQueue[Any] = mp.get_context("spawn").SimpleQueue()
    mp.spawn(_work, args=(world, _free_port(), names, folder, queue), nprocs=world)  # type: ignore[no-untyped-call]
    found = {}
    while not queue.empty():
        name, failures = queue.get()
        found[name] = failures
    return found
