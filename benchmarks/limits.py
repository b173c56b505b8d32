"""What limits each budget that was missed, by row: docs/speed.md says it below the table."""

_DURABLE = "`convert` waits until the disk has every byte, and the other side does not"

LIMITS: dict[str, str] = {
    "convert-pt-safetensors": _DURABLE,
    "convert-safetensors-pt": _DURABLE,
    "load-lazy": "the first touch of the pages of a file that `torch.save` wrote: `torch.load(mmap=True)` "
    "of it takes about 1.2× as well",
    "convert-reflink": "nothing is copied, but every byte is read once for its CRC-32 and digest",
    "s3-down": "two cores for a server in Python and for its client: `convert` sums up and writes what it "
    "reads, and boto3 only writes",
}
