"""An SFTP server of its own process: `python -m tests.servers.sftp ROOT PORT` serves what is under ROOT."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.servers.processes import free_port, process

PASSWORD = "the-secret-of-the-tests"


@contextmanager
def sftp(root: Path, log: Path) -> Iterator[str]:
    """Serve what is under `root` to whoever has PASSWORD; gives the host and the port."""
    port = free_port()
    command = [sys.executable, "-W", "ignore", "-m", "tests.servers.sftp", str(root), str(port)]
    with process(command, port, log):
        yield f"127.0.0.1:{port}"


async def _serve(root: str, port: int) -> None:
    import asyncssh

    class Login(asyncssh.SSHServer):
        def password_auth_supported(self) -> bool:
            return True

        def validate_password(self, username: str, password: str) -> bool:
            return password == PASSWORD

    def files(channel: asyncssh.SSHServerChannel[bytes]) -> asyncssh.SFTPServer:
        return asyncssh.SFTPServer(channel, chroot=root.encode())

    key = asyncssh.generate_private_key("ssh-ed25519")
    acceptor = await asyncssh.listen(
        "127.0.0.1", port, server_host_keys=[key], server_factory=Login, sftp_factory=files
    )
    await acceptor.wait_closed()


if __name__ == "__main__":
    asyncio.run(_serve(sys.argv[1], int(sys.argv[2])))
