"""What limits each budget that was missed, by row: docs/speed.md says it below the table."""

_DURABLE = "`convert` waits until the disk has every byte, and the other side does not"

LIMITS: dict[str, str] = {
    "convert-pt-safetensors": _DURABLE,
    "convert-safetensors-pt": _DURABLE,
    "load-lazy": "the first touch of the pages of a file that `torch.save` wrote: `torch.load(mmap=True)` "
    "of it takes about 1.2× as well",
    "convert-reflink": "nothing is copied, but every byte is read once for its CRC-32 and digest",
    "inspect-1gib": "the start of Python and the import of Typer are half of it, and the other side "
    "takes one second",
    "verify-bytes": "`cat` moves cached bytes at 25 GiB/s without looking at them, and a CRC-32 takes in "
    "13 GiB/s a core",
    "export-pt2": "the proof: eight forward passes, most of them in float64, where the exporter runs none",
    "export-onnx": "the proof, as for `.pt2`",
    "s3-up": "parts of 8 MiB that are being made and sent: how many there are at once depends on the server",
    "s3-down": "two cores for a server in Python and for its client: `convert` sums up and writes what it "
    "reads, and boto3 only writes",
}
