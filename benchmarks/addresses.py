"""Rows: files on other machines, over loopback. Servers run in this process and count what they are asked."""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from zipfile import ZipFile

from benchmarks.files import Files
from benchmarks.loopback import LOGIN, S3
from benchmarks.measure import Argv, Command, Samples
from benchmarks.rows import MIB, Budget, Row, peak, ptsave, python, wall_ratio
from benchmarks.training import STALLS
from tests.servers.faults import delay
from tests.servers.hub import Hub
from tests.servers.serving import Server

DELAY_S = 0.05
NUM_SHARDS = 200

DOWNLOAD = "import sys, boto3; boto3.client('s3').download_file('b', sys.argv[1], sys.argv[2])"
UPLOAD = "import sys, boto3; boto3.client('s3').upload_file(sys.argv[1], 'b', sys.argv[2])"
DOWNLOAD_THEN_CONVERT = (
    DOWNLOAD + "\nimport subprocess; subprocess.run([*sys.argv[4:], sys.argv[2], sys.argv[3]], check=True)"
)
LOAD = (
    "import sys, ptsave\n"
    "with ptsave.open(sys.argv[1]) as checkpoint: state = checkpoint.state_dict()\n"
    "print(sum(tensor.numel() for tensor in state.values()))"
)
LOAD_BY_BOTO3 = (
    "import io, boto3, torch\n"
    "data = io.BytesIO()\n"
    "boto3.client('s3').download_fileobj('b', 'model.pt', data)\n"
    "data.seek(0)\n"
    "print(sum(tensor.numel() for tensor in torch.load(data, weights_only=True).values()))"
)
LOAD_BY_S3TORCHCONNECTOR = (
    "import os, torch\n"
    "from s3torchconnector import S3Checkpoint, S3ClientConfig\n"
    "config = S3ClientConfig(force_path_style=True)\n"
    "kept = S3Checkpoint('us-east-1', endpoint=os.environ['AWS_ENDPOINT_URL'], s3client_config=config)\n"
    "with kept.reader('s3://b/model.pt') as reader: state = torch.load(reader, weights_only=True)\n"
    "print(sum(tensor.numel() for tensor in state.values()))"
)
LOAD_BY_RUNAI = (
    "from runai_model_streamer import SafetensorsStreamer\n"
    "with SafetensorsStreamer() as streamer:\n"
    "    streamer.stream_file('s3://b/model.safetensors')\n"
    "    print(sum(tensor.numel() for _, tensor in streamer.get_tensors()))"
)
HUB_DOWNLOAD = (
    "import sys; from huggingface_hub import hf_hub_download\n"
    "hf_hub_download('me/model', sys.argv[1], local_dir=sys.argv[2])"
)
HUB_METADATA = (
    "from huggingface_hub import HfApi\n"
    "for name, tensor in HfApi().get_safetensors_metadata('me/model').files_metadata.items(): print(name)"
)


class _Counted:
    """A server beside one command, so that what it counts is that command's."""

    def __init__(self, server: Server, delay_s: float, closing: Files) -> None:
        self.server = server
        closing.closing.enter_context(server)
        if delay_s:
            closing.closing.enter_context(server.faulty(delay(delay_s)))

    def env(self, argv: Argv, **env: str) -> Command:
        """The command `argv` in an environment; what was counted before it is forgotten."""

        def counted(out: Path) -> list[str]:
            with self.server.lock:
                self.server.log.clear()
            return ["env", *(f"{name}={value}" for name, value in env.items()), *argv(out)]

        return Command(counted)

    def count(self, samples: Mapping[str, Samples]) -> float:
        """Requests of the last run."""
        return self.server.count()


def _s3(files: Files, delay_s: float = 0.0) -> tuple[S3, _Counted, Callable[[Argv], Command]]:
    """An S3 server of its own, and what runs a command with it."""
    store = S3(files.folder)
    counted = _Counted(Server(store.handler), delay_s, files)
    env = LOGIN | {"AWS_ENDPOINT_URL": counted.server.url}
    return store, counted, lambda argv: counted.env(argv, **env)


def _add(store: S3, files: Files) -> dict[str, str]:
    """Serve what is inspected; gives each one's address."""
    pt, safetensors = files.state(files.gib)
    store.add("/b/model.pt", pt)
    store.add("/b/model.safetensors", safetensors)
    for path in sorted(files.sharded(files.gib, NUM_SHARDS, sparse=True).glob("model*")):
        store.add(f"/b/sharded/{path.name}", path)
    return {
        "safetensors": "s3://b/model.safetensors",
        "pt": "s3://b/model.pt",
        "shards": "s3://b/sharded/",
    }


def _inspect(address: str) -> Argv:
    return lambda out: ptsave("inspect", address)


WORDS = {"safetensors": "1 GiB safetensors", "pt": "1 GiB `.pt`", "shards": f"{NUM_SHARDS} shards"}


def inspect_s3(files: Files) -> Row:
    """Requests and bytes of headers."""
    sides, budgets = {}, []
    most = {"safetensors": 2, "pt": 4, "shards": 2 * NUM_SHARDS + 2}
    for kind, words in WORDS.items():
        store, counted, command = _s3(files)
        address = _add(store, files)[kind]
        sides[kind] = command(_inspect(address))
        asked = [
            path
            for name, found in store.objects.items()
            if f"s3:/{name}".startswith(address)
            for path in found.files
        ]
        beyond = _beyond_headers(counted, asked)
        budgets += [
            Budget(f"`inspect s3://…`, {words}", "", counted.count, "requests", most[kind]),
            Budget(f"`inspect s3://…`, {words}, bytes beyond headers, a file", "", beyond, "KiB", 64),
        ]
    return Row(sides, budgets)


def _beyond_headers(counted: _Counted, paths: list[Path]) -> Callable[[Mapping[str, Samples]], float]:
    """KiB of the last run that were no header, a file."""

    def measured(samples: Mapping[str, Samples]) -> float:
        headers = [_header_bytes(path) for path in paths if path.is_file()]
        return (counted.server.num_bytes_out - sum(headers)) / 1024 / max(1, len(headers))

    return measured


def _header_bytes(path: Path) -> int:
    """How much of a file tells what is in it."""
    if path.suffix == ".json":
        return path.stat().st_size
    if path.suffix == ".pt":
        with ZipFile(path) as archive:
            pickles = [
                entry.file_size for entry in archive.infolist() if entry.filename.endswith("/data.pkl")
            ]
            return sum(pickles) + path.stat().st_size - archive.start_dir
    with path.open("rb") as file:
        return 8 + int.from_bytes(file.read(8), "little")


def inspect_far(files: Files) -> Row:
    """50 ms more for each request: what it costs in round trips, one after the other."""
    sides, budgets = {}, []
    most = {"safetensors": 5, "pt": 6, "shards": 30}
    for kind, words in WORDS.items():
        for side, delay_s in ((kind, 0.0), (f"{kind}-far", DELAY_S)):
            store, _, command = _s3(files, delay_s)
            sides[side] = command(_inspect(_add(store, files)[kind]))
        budgets.append(
            Budget(
                f"`inspect s3://…`, {words}, 50 ms added to each request",
                "one request's 50 ms",
                _round_trips(kind),
                "×",
                most[kind],
            )
        )
    return Row(sides, budgets)


def _round_trips(kind: str) -> Callable[[Mapping[str, Samples]], float]:
    return lambda samples: (samples[f"{kind}-far"].wall - samples[kind].wall) / DELAY_S


def s3_down(files: Files) -> Row:
    """1 GiB from S3 into a local file of another format."""
    store, counted, of_convert = _s3(files)
    _add(store, files)
    store, _, command = _s3(files)
    _add(store, files)
    convert = ptsave("convert", "-q", "--no-check")
    return Row(
        {
            "convert": of_convert(lambda out: [*convert, "s3://b/model.pt", str(out / "b.safetensors")]),
            "client": command(lambda out: python(DOWNLOAD, "model.pt", out / "b.pt")),
            "both": command(
                lambda out: python(
                    DOWNLOAD_THEN_CONVERT, "model.pt", out / "b.pt", out / "b.safetensors", *convert
                )
            ),
        },
        [
            Budget(
                "`convert s3://… local`, 1 GiB", "boto3's download", wall_ratio("convert", "client"), "×", 1.1
            ),
            Budget(
                "`convert s3://… local`, 1 GiB",
                "download, then convert",
                wall_ratio("convert", "both"),
                "×",
                0.7,
            ),
            Budget(
                "`convert s3://… local`, 1 GiB, bytes that the server sent",
                "the bytes of the file",
                lambda samples: counted.server.num_bytes_out / files.gib,
                "×",
                1.1,
            ),
            Budget("`convert s3://… local`, 1 GiB, peak", "", peak("convert"), "MiB", 128),
            Budget("boto3's download of 1 GiB, peak", "", peak("client"), "MiB"),
        ],
        touch_bytes=files.gib,
    )


def s3_up(files: Files) -> Row:
    """1 GiB from a local file into S3, in another format."""
    _, _, command = _s3(files)
    pt, _ = files.state(files.gib)
    convert = ptsave("convert", "-q", "--no-check", "--overwrite")
    return Row(
        {
            "convert": command(lambda out: [*convert, str(pt), "s3://b/up.safetensors"]),
            "client": command(lambda out: python(UPLOAD, pt, "up.pt")),
        },
        [
            Budget(
                "`convert local s3://…`, 1 GiB", "boto3's upload", wall_ratio("convert", "client"), "×", 1.1
            ),
            Budget("`convert local s3://…`, 1 GiB, peak", "", peak("convert"), "MiB", 128),
            Budget("boto3's upload of 1 GiB, peak", "", peak("client"), "MiB"),
        ],
        touch_bytes=files.gib,
    )


def s3_archive(files: Files) -> Row:
    """1 GiB in an archive on S3."""
    pt, _ = files.state(files.gib)
    archive = files.archive(pt, "notes/model.pt")
    member = "s3://b/archive.tar::notes/model.pt"
    sides: dict[str, Command] = {}
    counts = {}
    argvs: dict[str, Argv] = {
        "inspect": _inspect(member),
        "convert": lambda out: ptsave("convert", "-q", "--no-check", member, out / "b.safetensors"),
        "client": lambda out: python(DOWNLOAD, "archive.tar", out / "b.tar"),
    }
    for side, argv in argvs.items():
        store, counted, command = _s3(files)
        store.add("/b/archive.tar", archive)
        sides[side], counts[side] = command(argv), counted
    what = "`convert s3://….tar::model.pt local`, 1 GiB"
    return Row(
        sides,
        [
            Budget("`inspect s3://….tar::model.pt`, 1 GiB", "", counts["inspect"].count, "requests"),
            Budget(what, "boto3's download of the archive", wall_ratio("convert", "client"), "×"),
            Budget(f"{what}, peak", "", peak("convert"), "MiB", 128),
        ],
        touch_bytes=files.gib,
    )


def s3_run(files: Files) -> Row:
    """Four saves of 1 GiB by `Checkpoints` into S3, each when the one before is there."""
    _, counted, _ = _s3(files)
    saves = [sys.executable, str(STALLS), "ptsave"]
    runs = itertools.count()

    def argv(out: Path) -> list[str]:
        return [*saves, f"s3://b/run-{next(runs)}", str(files.gib)]

    store = counted.env(argv, **LOGIN, AWS_ENDPOINT_URL=counted.server.url)
    return Row(
        {
            "store": replace(store, reports_itself=True),
            "disk": Command(lambda out: [*saves, str(out), str(files.gib)], reports_itself=True),
        },
        [
            Budget(
                '`Checkpoints("s3://…").save` 1 GiB, the loop\'s stall',
                "the same on a disk",
                wall_ratio("store", "disk"),
                "×",
            ),
            Budget("four such saves, three of which go again", "", counted.count, "requests"),
        ],
        touch_bytes=3 * files.gib,
    )


def _of(argv: list[str]) -> Argv:
    """The command that is the same whatever its folder."""
    return lambda out: argv


def s3_load(files: Files) -> Row:
    """1 GiB from S3 into memory, beside what others have for it."""
    sides = {}
    argvs = {
        "pt": python(LOAD, "s3://b/model.pt"),
        "safetensors": python(LOAD, "s3://b/model.safetensors"),
        "boto3": python(LOAD_BY_BOTO3),
        "s3torchconnector": python(LOAD_BY_S3TORCHCONNECTOR),
        "runai": python(LOAD_BY_RUNAI),
    }
    for side, argv in argvs.items():
        store, counted, _ = _s3(files)
        _add(store, files)
        url = counted.server.url
        more = {"RUNAI_STREAMER_S3_ENDPOINT": url, "RUNAI_STREAMER_S3_USE_VIRTUAL_ADDRESSING": "0"}
        sides[side] = counted.env(_of(argv), **LOGIN, **more, AWS_ENDPOINT_URL=url)
    pt, safetensors = "`load` 1 GiB `.pt` from `s3://`", "`load` 1 GiB safetensors from `s3://`"
    return Row(
        sides,
        [
            Budget(pt, "boto3's download, then `torch.load`", wall_ratio("pt", "boto3"), "×"),
            Budget(pt, "s3torchconnector", wall_ratio("pt", "s3torchconnector"), "×"),
            Budget(safetensors, "runai-model-streamer", wall_ratio("safetensors", "runai"), "×"),
            *(
                Budget(f"{words}, peak", "", peak(side), "MiB")
                for side, words in {
                    "pt": pt,
                    "safetensors": safetensors,
                    "boto3": "boto3's download and `torch.load`",
                    "s3torchconnector": "s3torchconnector",
                    "runai": "runai-model-streamer",
                }.items()
            ),
        ],
        touch_bytes=2 * files.gib,
    )


def hub_inspect(files: Files) -> Row:
    """Headers of a repository with 200 shards, each request 50 ms later."""
    shards = _contents(*files.sharded(100 * MIB, NUM_SHARDS).glob("model*"))
    sides = {}
    for side, argv in {"ptsave": ptsave("inspect", "hf://me/model"), "hub": python(HUB_METADATA)}.items():
        hub = Hub()
        hub.create("me/model", shards)
        _Counted(hub.cdn, DELAY_S, files)
        sides[side] = _of_hub(_Counted(hub.server, DELAY_S, files), hub, argv)
    against = "`HfApi.get_safetensors_metadata`"
    what = f"`inspect hf://…`, {NUM_SHARDS} shards, 50 ms added to each request"
    return Row(
        sides,
        [
            Budget(what, against, wall_ratio("ptsave", "hub"), "×"),
            Budget(f"{what}, peak", "", peak("ptsave"), "MiB"),
        ],
    )


def hub_down(files: Files) -> Row:
    """1 GiB from the Hub into a local file of another format."""
    _, safetensors = files.state(files.gib)
    hub = Hub()
    hub.create("me/model", _contents(safetensors))
    _Counted(hub.cdn, 0.0, files)
    counted = _Counted(hub.server, 0.0, files)
    return Row(
        {
            "convert": counted.env(
                lambda out: ptsave(
                    "convert", "-q", "--no-check", f"hf://me/model/{safetensors.name}", out / "b.pt"
                ),
                **hub.env,
            ),
            "client": counted.env(lambda out: python(HUB_DOWNLOAD, safetensors.name, out), **hub.env),
        },
        [
            Budget(
                "`convert hf://… local`, 1 GiB",
                "`hf_hub_download`",
                wall_ratio("convert", "client"),
                "×",
                1.1,
            ),
            Budget("`convert hf://… local`, 1 GiB, peak", "", peak("convert"), "MiB", 128),
        ],
        touch_bytes=files.gib,
    )


def _contents(*paths: Path) -> dict[str, bytes]:
    """What a repository is made of, by name."""
    return {path.name: path.read_bytes() for path in paths if path.is_file()}


def _of_hub(counted: _Counted, hub: Hub, argv: list[str]) -> Command:
    return counted.env(lambda out: ["env", f"HF_HOME={out}", *argv], **hub.env)


ROWS = [inspect_s3, inspect_far, s3_down, s3_up, s3_archive, s3_run, s3_load, hub_inspect, hub_down]
