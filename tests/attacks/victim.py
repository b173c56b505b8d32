"""What would happen to somebody who unpickles: proof that the payloads are live.

Run as a script with the paths of attacks, in a folder with `canary_module.py`. Each is given to a real
unpickler in a forked child; prints the paths that made the canary, one a line.
"""

from __future__ import annotations

import io
import os
import pickle
import sys
import zipfile
from pathlib import Path

import torch

CANARY = Path("canary-was-here")


def pickles(path: Path) -> list[bytes]:
    """The pickles of a torch zip, a DCP folder, or a file of pickles one after the other."""
    if path.is_dir():
        return [(path / ".metadata").read_bytes()]
    if zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            return [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
    return [path.read_bytes()]


def unpickle(data: bytes) -> None:
    stream = io.BytesIO(data)
    storage = torch.storage.TypedStorage(
        wrap_storage=torch.UntypedStorage(16), dtype=torch.float32, _internal=True
    )
    while stream.tell() < len(data):
        unpickler = pickle.Unpickler(stream)
        unpickler.persistent_load = lambda pid: storage
        unpickler.load()


def main() -> None:
    sys.path.insert(0, os.getcwd())
    for name in sys.argv[1:]:
        CANARY.unlink(missing_ok=True)
        pid = os.fork()
        if pid == 0:
            quiet = os.open(os.devnull, os.O_WRONLY)
            os.dup2(quiet, 1)
            os.dup2(quiet, 2)
            try:
                for data in pickles(Path(name)):
                    unpickle(data)
            finally:
                os._exit(0)
        os.waitpid(pid, 0)
        if CANARY.exists():
            print(name, flush=True)


if __name__ == "__main__":
    main()
