"""Compare clients of S3 on loopback: start-up, one range, and 1 GiB down and up, as whole processes.

    python -m benchmarks.store_clients boto3=python obstore=/tmp/obstore/bin/python s3fs=/tmp/s3fs/bin/python

Each client runs in the Python that is named for it; docs/stores.md says what came out.
"""

from __future__ import annotations

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.loopback import LOGIN, S3
from tests.servers.serving import Server

CLIENTS = {
    "boto3": {
        "start": "import boto3; c = boto3.client('s3')",
        "range": "c.get_object(Bucket='b', Key='big', Range='bytes=0-9999')['Body'].read()",
        "down": "c.download_file('b', 'big', out)",
        "up": "c.upload_file(out, 'b', 'up')",
    },
    "botocore": {
        "start": "import botocore.session as s; c = s.get_session().create_client('s3')",
        "range": "c.get_object(Bucket='b', Key='big', Range='bytes=0-9999')['Body'].read()",
    },
    "obstore": {
        "start": (
            "import os, obstore; from obstore.store import S3Store; c = S3Store('b', "
            "endpoint=os.environ['AWS_ENDPOINT_URL'], client_options={'allow_http': True})"
        ),
        "range": "obstore.get_range(c, 'big', start=0, end=10000)",
        "down": (
            "f = open(out, 'wb')\n"
            "for piece in obstore.get(c, 'big').stream(min_chunk_size=1 << 20): f.write(piece)"
        ),
        "up": "from pathlib import Path; obstore.put(c, 'up', Path(out), chunk_size=8 << 20)",
    },
    "s3fs": {
        "start": "import s3fs; c = s3fs.S3FileSystem()",
        "range": "c.cat_file('b/big', start=0, end=10000)",
        "down": "c.get_file('b/big', out)",
        "up": "c.put_file(out, 'b/up')",
    },
}
RUNS = 3


def main() -> None:
    """Print a table: wall and CPU seconds and peak MiB of each client, medians."""
    pythons = dict(pair.split("=", 1) for pair in sys.argv[1:])
    with tempfile.TemporaryDirectory() as temp:
        folder = Path(temp)
        big = folder / "big"
        with big.open("wb") as file:  # not at once: a child begins with the peak of its parent
            for _ in range(1024):
                file.write(os.urandom(1 << 20))
        store = S3(folder)
        store.add("/b/big", big)
        with Server(store.handler) as server:
            env = os.environ | LOGIN | {"AWS_ENDPOINT_URL": server.url, "out": str(folder / "out")}
            for what in ("start", "range", "down", "up"):
                for client, python in pythons.items():
                    if what in CLIENTS[client]:
                        (folder / "out").write_bytes(b"") if what != "up" else os.replace(
                            _copy(big), folder / "out"
                        )
                        lines = ["import os; out = os.environ['out']", CLIENTS[client]["start"]]
                        code = "\n".join(lines + ([CLIENTS[client][what]] if what != "start" else []))
                        taken = [_run([python, "-c", code], env) for _ in range(RUNS)]
                        wall, cpu, peak = (statistics.median(column) for column in zip(*taken, strict=True))
                        print(
                            f"{what:6} {client:9} {wall:7.2f} s {cpu:7.2f} s CPU {peak:7.0f} MiB", flush=True
                        )
                        server.reset()


def _copy(path: Path) -> Path:
    copy = path.with_suffix(".copy")
    shutil.copyfile(path, copy)
    return copy


def _run(argv: list[str], env: dict[str, str]) -> tuple[float, float, float]:
    begin = time.monotonic()
    process = subprocess.Popen(argv, env=env)
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = status
    if status:
        raise SystemExit(f"{argv} failed")
    return time.monotonic() - begin, used.ru_utime + used.ru_stime, _peak_mib(used)


def _peak_mib(used: resource.struct_rusage) -> float:
    return used.ru_maxrss / 1024


if __name__ == "__main__":
    main()
