"""One fuzzer at work on one target: `python -m fuzz.worker atheris|hypothesis TARGET SECONDS FOLDER`.

`python -m fuzz.worker replay TARGET FILE` runs one kept input, with its traceback and its time.

Findings are kept as files in FOLDER, one for each kind: `TARGET-KIND.bin` beside `TARGET-KIND.txt` with the
traceback. The engine's own figures go to stderr, ours to stdout, as a line of JSON each second.
"""

from __future__ import annotations

import hashlib
import json
import re
import resource
import subprocess
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import Any

MAX_SECONDS = 2.0
"""For one input."""
MAX_SEED_SECONDS = 0.03
"""A slower seed has slow offspring, on which all the time would go."""
MAX_GROWTH_BYTES = 300 * 10**6
"""By how much one input may raise the peak of memory."""


class Findings:
    """Runs inputs, and keeps those that do what none may do."""

    def __init__(self, bench: Any, folder: Path) -> None:
        """Begin with nothing found."""
        self.bench = bench
        self.folder = folder
        self.kinds: dict[str, int] = {}
        self.executions = 0
        self.accepted = 0
        self.slowest = 0.0
        self.reported = time.monotonic()

    def __call__(self, data: bytes) -> None:
        """Run one input; never raises."""
        self.executions += 1
        peak = _peak_bytes()
        started = time.process_time()
        try:
            self.accepted += self.bench.run(data)
        except Exception as error:
            self._keep(type(error).__name__, data, traceback.format_exc())
        seconds = time.process_time() - started
        if seconds > MAX_SECONDS:
            seconds = _seconds_without_instruments(self.bench.target.name, data)
        self.slowest = max(self.slowest, seconds)
        if seconds > MAX_SECONDS:
            self._keep("slow", data, f"{seconds:.1f} s")
        if _peak_bytes() - peak > MAX_GROWTH_BYTES:
            self._keep("large", data, f"{(_peak_bytes() - peak) / 1e6:.0f} MB")
        if time.monotonic() - self.reported > 1:  # libFuzzer leaves the process without a word to Python
            self.report()

    def _keep(self, kind: str, data: bytes, text: str) -> None:
        lines = text.splitlines()
        places = [line.strip() for line in lines if "ptsave/" in line]
        # readers that differ are known by what they say, less what is the input's own
        told = places[-2:] or [re.sub(r"[^a-z ]", "", lines[-1][:100], flags=re.IGNORECASE) if lines else ""]
        kind += "-" + hashlib.sha256("".join(told).encode()).hexdigest()[:8]
        self.kinds[kind] = self.kinds.get(kind, 0) + 1
        stem = self.folder / f"{self.bench.target.name}-{kind}"
        kept = stem.with_suffix(".bin")
        if not kept.exists() or len(data) < kept.stat().st_size:  # the smallest is the easiest to understand
            kept.write_bytes(data)
            stem.with_suffix(".txt").write_text(text, errors="backslashreplace")

    def report(self) -> None:
        """Print the figures so far."""
        self.reported = time.monotonic()
        figures = {
            "executions": self.executions,
            "accepted": self.accepted,
            "slowest_seconds": round(self.slowest, 3),
            "findings": self.kinds,
        }
        print(json.dumps(figures), flush=True)


def _seconds_without_instruments(name: str, data: bytes) -> float:
    """How long one input takes in a process of its own: counting edges makes Python several times slower."""
    with tempfile.NamedTemporaryFile() as file:
        file.write(data)
        file.flush()
        command = [sys.executable, "-m", "fuzz.worker", "replay", name, file.name]
        done = subprocess.run(command, capture_output=True, text=True)
    return float(done.stdout.split()[0]) if done.returncode == 0 else 0.0  # else another finding


def replay(name: str, path: Path) -> None:
    """Run one input, and print the seconds of CPU that it took."""
    from fuzz.targets import TARGETS, Bench

    bench = Bench(TARGETS[name])
    started = time.process_time()
    accepted = bench.run(path.read_bytes())
    seconds = time.process_time() - started
    print(f"{seconds:.3f} s, {'accepted' if accepted else 'refused'}")
    bench.close()


def _seconds(findings: Findings, seed: bytes) -> float:
    started = time.process_time()
    findings(seed)
    return time.process_time() - started


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def atheris(name: str, seconds: int, folder: Path) -> None:
    """Coverage-guided: libFuzzer mutates what reached something new in ptsave's own code."""
    import atheris  # type: ignore[import-untyped]

    with atheris.instrument_imports(include=["ptsave"]):
        from fuzz.targets import TARGETS, WORDS, Bench
    target = TARGETS[name]
    findings = Findings(Bench(target), folder)
    with tempfile.TemporaryDirectory() as corpus:
        for seed in target.seeds():
            if _seconds(findings, seed) > MAX_SEED_SECONDS:
                continue
            (Path(corpus) / hashlib.sha256(seed).hexdigest()[:16]).write_bytes(seed)
        dictionary = Path(corpus) / "words"
        words = ("".join(f"\\x{byte:02x}" for byte in word) for word in WORDS.get(name, ()))
        dictionary.write_text("".join(f'"{word}"\n' for word in words))
        arguments = [
            sys.argv[0],
            f"-max_total_time={seconds}",
            *([f"-dict={dictionary}"] if name in WORDS else []),
            f"-artifact_prefix={folder}/{name}-",
            "-max_len=4096",
            "-timeout=30",
            "-rss_limit_mb=3000",
            "-print_final_stats=1",
            corpus,
        ]
        atheris.Setup(arguments, findings)
        atheris.Fuzz()


def hypothesis(name: str, seconds: int, folder: Path) -> None:
    """Structured: programs, archives and headers that are nearly right, from the tests' strategies."""
    from hypothesis import HealthCheck, Phase, given, settings

    from fuzz.targets import TARGETS, Bench
    from tests.attacks.strategies import STRATEGIES

    findings = Findings(Bench(TARGETS[name]), folder)
    end = time.monotonic() + seconds

    @settings(
        max_examples=500,
        deadline=None,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(STRATEGIES[name])
    def run(data: bytes) -> None:
        if time.monotonic() < end:
            findings(data)

    while time.monotonic() < end:
        run()
    findings.report()


if __name__ == "__main__":
    if sys.argv[1] == "replay":
        replay(sys.argv[2], Path(sys.argv[3]))
    else:
        engine = {"atheris": atheris, "hypothesis": hypothesis}[sys.argv[1]]
        engine(sys.argv[2], int(sys.argv[3]), Path(sys.argv[4]))
