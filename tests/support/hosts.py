"""Two hosts on this machine: network namespaces of their own, joined by a pair of virtual Ethernet devices.

What runs in one reaches the other by TCP over that link and not otherwise; the file system is one.
"""

import os
import shutil
import signal
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.processes import start

ADDRESSES = ("10.77.0.1", "10.77.0.2")
MEETING_PORT = 29400


@dataclass(frozen=True)
class Host:
    """One of the hosts.

    Attributes:
        namespace: of its network.
        interface: its end of the link.
        address: by which the other reaches it.
    """

    namespace: str
    interface: str
    address: str

    def kill_all(self) -> None:
        """Kill every process on the host at once, as a machine that fails does."""
        listed = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=False)
        for process_id in map(int, listed.stdout.split()):
            with suppress(ProcessLookupError):
                os.kill(process_id, signal.SIGKILL)

    def torchrun(
        self, temporary: Path, *command: str, options: Sequence[str] = (), mounts: str = "", **variables: str
    ) -> subprocess.Popen:
        """Start `python command` by torchrun, one process of the host's own, as one of two hosts.

        Args:
            temporary: folder of temporary files.
            *command: what torchrun starts.
            options: further ones of torchrun.
            mounts: a shell command that mounts folders for this host alone.
            **variables: of the environment.
        """
        launcher = ["-m", "torch.distributed.run", "--nnodes=2", "--nproc_per_node=1", "--rdzv_id=two-hosts"]
        launcher += ["--rdzv_backend=c10d", f"--rdzv_endpoint={ADDRESSES[0]}:{MEETING_PORT}"]
        launcher += [f"--rdzv_conf=is_host={int(self.address == ADDRESSES[0])}", f"--local_addr={self.address}"]
        within = ["ip", "netns", "exec", self.namespace]
        within += ["sh", "-c", f'{mounts} && exec "$@"', "sh"] if mounts else []
        own_variables = {"GLOO_SOCKET_IFNAME": self.interface, **variables}
        return start(temporary, *launcher, *options, *command, within=within, **own_variables)


@contextmanager
def two_hosts() -> Iterator[list[Host]]:
    """Make two hosts and take them away again; skip the test where this process may not."""
    names = [f"gf{os.getpid()}{letter}" for letter in "ab"]
    hosts = [Host(name, name, address) for name, address in zip(names, ADDRESSES, strict=True)]
    try:
        try:
            for host in hosts:
                _ip("netns", "add", host.namespace)
            _ip("link", "add", names[0], "type", "veth", "peer", "name", names[1])
            for host in hosts:
                _ip("link", "set", host.interface, "netns", host.namespace)
                _ip("-n", host.namespace, "addr", "add", f"{host.address}/24", "dev", host.interface)
                for device in ("lo", host.interface):
                    _ip("-n", host.namespace, "link", "set", device, "up")
        except FileNotFoundError:
            pytest.skip("there is no `ip` command (package iproute2) to make network namespaces with")
        except subprocess.CalledProcessError as refused:
            pytest.skip(f"network namespaces need rights that this process does not have: {refused.stderr.strip()}")
        yield hosts
    finally:
        for host in hosts if shutil.which("ip") else []:
            host.kill_all()
            subprocess.run(["ip", "netns", "del", host.namespace], capture_output=True, check=False)


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], capture_output=True, text=True, check=True)
