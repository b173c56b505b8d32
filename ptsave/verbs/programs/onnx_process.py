"""onnxruntime in a process of its own: what it dies of, it alone dies of.

It is a library in C++ that takes a model's word for much: a model can make it read beyond its memory. The
process that asks would go down with it, without a word.

Both sides send a line of JSON, then the bytes of the arrays that the line describes. Nothing is unpickled.
"""

from __future__ import annotations

import ctypes
import json
import math
import os
import signal
import subprocess
import sys
import weakref
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

FOLDER_OF_DATA = "session.model_external_initializers_file_folder_path"
"""Source: onnxruntime_session_options_config_keys.h."""
_SERVE = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from ptsave.verbs.programs.onnx_process import serve; serve()"
)
BFLOAT16 = [("bfloat16", "<u2")]
"""What stands for bfloat16 among NumPy's dtypes, which do not have it: its bits, under its name."""
_ONNX_BFLOAT16 = 16
"""Source: onnx.proto, `TensorProto.DataType`."""
_PATIENCE_S = 10
"""How long it may take to leave once there is nothing more to do."""


class OnnxruntimeError(Exception):
    """What onnxruntime raised, or that it died."""


class OnnxSession:
    """A model that is loaded in another process, which ends with this object."""

    def __init__(self, path: Path, model: bytes | None = None) -> None:
        """Load the model at `path`; or another `model` whose weights lie where its do.

        Raises: OnnxruntimeError.
        """
        folders = [folder for folder in sys.path if folder]  # "" is wherever the process happens to be
        self._process = subprocess.Popen(
            [sys.executable, "-I", "-c", _SERVE, json.dumps(folders)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
        )
        self.close = weakref.finalize(self, _end, self._process)
        self._ask({"path": str(path), "num_bytes": None if model is None else len(model)}, model or b"")
        loaded = self._answer()
        self.inputs: list[str] = loaded["inputs"]
        self.outputs: list[str] = loaded["outputs"]

    def run(self, feeds: Mapping[str, Any]) -> Iterator[Any]:
        """What the model computes from arrays of NumPy (those of bfloat16 have the dtype BFLOAT16): one array
        an output, None where it is no array.

        Raises: OnnxruntimeError.
        """
        import numpy as np

        arrays = {name: np.asarray(array, order="C") for name, array in feeds.items()}
        self._ask(
            {"feeds": [[name, *_described(array)] for name, array in arrays.items()]},
            *(array.reshape(-1).view("u1").data for array in arrays.values() if array.size),
        )
        for described in self._answer()["outputs"]:
            yield None if described is None else _read_array(self._answers, *described)

    @property
    def _answers(self) -> IO[bytes]:
        assert self._process.stdout is not None
        return self._process.stdout

    def _ask(self, what: Mapping[str, Any], *data: bytes | memoryview) -> None:
        assert self._process.stdin is not None
        try:
            _send(self._process.stdin, what, *data)
        except OSError:
            raise self._died() from None

    def _answer(self) -> dict[str, Any]:
        line = self._answers.readline()
        if not line.endswith(b"\n"):
            raise self._died()
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise OnnxruntimeError(answer["error"])
        return answer

    def _died(self) -> OnnxruntimeError:
        code = self._process.wait()
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return OnnxruntimeError(f"onnxruntime died of it ({how}); report it to its authors, with the model")


def _end(process: subprocess.Popen[bytes]) -> None:
    for stream in (process.stdin, process.stdout):
        assert stream is not None
        try:
            stream.close()
        except OSError:  # it is dead, and does not take what is left to be written
            continue
    try:
        process.wait(_PATIENCE_S)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _send(stream: IO[bytes], what: Mapping[str, Any], *data: bytes | memoryview) -> None:
    stream.write(json.dumps(what).encode() + b"\n")
    for part in data:
        stream.write(part)
    stream.flush()


def _described(array: Any) -> tuple[str, tuple[int, ...]]:
    """The dtype and the shape of an array, as JSON has them."""
    return array.dtype.names[0] if array.dtype.names else array.dtype.str, array.shape


def _read_array(stream: IO[bytes], dtype: str, shape: list[int]) -> Any:
    import numpy as np

    kind = np.dtype(BFLOAT16 if dtype == BFLOAT16[0][0] else dtype)
    size = math.prod(shape) * kind.itemsize
    data = stream.read(size)
    if len(data) != size:
        raise OnnxruntimeError("onnxruntime died while it returned an output")
    return np.frombuffer(bytearray(data), kind).reshape(shape)


# --- the other process ------------------------------------------------------------------------------------


def serve() -> None:
    """Load one model, and run it as often as is asked for, until nothing more can be asked."""
    requests = sys.stdin.buffer
    answers = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # what a library prints is no answer
    session: Any = None
    while line := requests.readline():
        request = json.loads(line)
        try:
            if session is None:
                session = _loaded(request["path"], request["num_bytes"], requests)
                ports = {
                    "inputs": [port.name for port in session.get_inputs()],
                    "outputs": [port.name for port in session.get_outputs()],
                }
                _send(answers, ports)
                continue
            feeds = {name: _read_array(requests, dtype, shape) for name, dtype, shape in request["feeds"]}
            found = [value if _is_numeric(value) else None for value in _run(session, feeds)]
        except Exception as error:  # onnxruntime has no common base for what it raises
            _send(answers, {"error": f"{type(error).__name__}: {error}"})
            continue
        described = [None if value is None else _described(value) for value in found]
        _send(answers, {"outputs": described}, *(value.tobytes() for value in found if value is not None))


def _loaded(path: str, num_bytes: int | None, requests: IO[bytes]) -> Any:
    model = path if num_bytes is None else requests.read(num_bytes)
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # what it has to say, it raises
    if num_bytes is not None:
        options.add_session_config_entry(FOLDER_OF_DATA, str(Path(path).absolute().parent))
    return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def _run(session: Any, feeds: Mapping[str, Any]) -> list[Any]:
    """The outputs, as arrays; onnxruntime's own call takes and gives NumPy's dtypes alone."""
    ports = (*session.get_inputs(), *session.get_outputs())
    if not any(array.dtype.names for array in feeds.values()) and not any(
        port.type == f"tensor({BFLOAT16[0][0]})" for port in ports
    ):
        return list(session.run(None, feeds))
    import onnxruntime

    made = onnxruntime.OrtValue
    values = {
        name: made.ortvalue_from_numpy_with_onnx_type(array.view("<u2"), _ONNX_BFLOAT16)
        if array.dtype.names
        else made.ortvalue_from_numpy(array)
        for name, array in feeds.items()
    }
    return [_array(value) for value in session.run_with_ort_values(None, values)]


def _array(value: Any) -> Any:
    """A value of onnxruntime's as an array; None where it is none."""
    import numpy as np

    if not value.is_tensor():
        return None
    if value.element_type() != _ONNX_BFLOAT16:
        return value.numpy()
    shape, kind = value.shape(), np.dtype(BFLOAT16)
    data = ctypes.string_at(value.data_ptr(), math.prod(shape) * kind.itemsize)
    return np.frombuffer(data, kind).reshape(shape)


def _is_numeric(value: Any) -> bool:
    """Whether an output is an array of numbers, not of texts, nor a list or a dict."""
    return hasattr(value, "dtype") and (value.dtype.kind in "biufc" or value.dtype.names is not None)
