"""What is known of a dotted name in a pickle. It changes what is said of a name, never whether it passes.

A name that is not in the allow-list fails the check `safe` whatever is known of it. This table
tells the reader how dangerous the name is.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from typing import Final, Literal

from ptsave.core.nodes import GlobalUse

NameKind = Literal["runs", "library", "unknown"]

MAX_NAMES_SHOWN = 5
MAX_NAME_SHOWN = 80
MAX_NAMES_IN_ERRORS = 1000

WORDS: Final[dict[NameKind, str]] = {
    "runs": "known to run code, reach the network or change files",
    "library": "a library's own class, which ptsave does not need",
    "unknown": "unknown to ptsave",
}


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_RUNNING_MODULES = _words(
    """
    _aix_support _compile _ctypes _operator _osx_support _pickle _posixsubprocess _pyio _pyrepl _winapi
    aiohttp asyncio bdb cProfile cgitb cloudpickle code codeop commands compileall concurrent copyreg
    ctypes dill distutils doctest ensurepip fabric fileinput ftplib http httplib idlelib imaplib imp
    importlib ipdb jsonpickle lib2to3 linecache logging.config logging.handlers marshal mmap
    modulefinder msvcrt multiprocessing nntplib nt numpy.distutils numpy.f2py numpy.testing operator os
    paramiko pdb pickle pip pipes pkgutil poplib posix profile pstats pty py_compile pydoc requests
    rlcompleter runpy setuptools shelve shutil signal site smtplib socket socketserver sqlite3 ssl
    subprocess sys sysconfig tarfile telnetlib tempfile timeit torch._dynamo torch._inductor
    torch.distributed.rpc torch.hub torch.multiprocessing torch.package torch.utils._config_module
    torch.utils.bottleneck torch.utils.collect_env torch.utils.cpp_extension torch.utils.data.datapipes
    torch.utils.model_zoo trace urllib urllib2 urllib3 venv webbrowser winreg wsgiref xmlrpc zipapp
    zipfile zipimport
    """
)
_RUNNING_NAMES = _words(
    """
    _io.FileIO _io.open _io.open_code atexit._run_exitfuncs atexit.register builtins.__build_class__
    builtins.__import__ builtins.apply builtins.breakpoint builtins.compile builtins.delattr
    builtins.eval builtins.exec builtins.execfile builtins.exit builtins.file builtins.filter
    builtins.getattr builtins.globals builtins.help builtins.input builtins.locals builtins.map
    builtins.open builtins.print builtins.quit builtins.reload builtins.setattr builtins.vars
    cloudpickle.cloudpickle._make_function com.microsoft.EPContext com.microsoft.PythonOp
    com.microsoft.PythonOpGrad com.microsoft.TritonOp dataclasses.make_dataclass functools.partial
    functools.partialmethod functools.reduce io.FileIO io.open io.open_code itertools.accumulate
    itertools.starmap joblib.load keras.models.load_model logging.FileHandler numpy.fromfile
    numpy.genfromtxt numpy.lib.npyio.load numpy.load numpy.loadtxt numpy.memmap numpy.save numpy.savetxt
    numpy.savez pandas.eval pandas.io.pickle.read_pickle pandas.read_pickle platform._syscmd_file
    platform.popen sklearn.externals.joblib.load tensorflow.io.read_file tensorflow.io.write_file
    tensorflow.keras.models.load_model test.support.script_helper.assert_python_ok threading.Thread
    threading.Timer torch._utils_internal.launch torch.classes.load_library torch.compile
    torch.export.load torch.from_file
    torch.fx.experimental.symbolic_shapes.ShapeEnv.evaluate_guards_expression
    torch.fx.graph_module._exec_with_source torch.fx.graph_module._forward_from_src
    torch.fx.graph_module.reduce_graph_module torch.fx.graph_module.reduce_package_graph_module
    torch.jit.load torch.jit.script torch.jit.unsupported_tensor_ops.execWrapper torch.load
    torch.ops.aten.from_file torch.ops.aten.save torch.ops.image
    torch.ops.load_library torch.save torch.serialization.load torch.storage._load_from_bytes
    types.CodeType types.FunctionType uuid._get_command_stdout weakref.finalize
    """
)
_WITHIN = _words(
    """
    builtins ctypes importlib os pickle posix runpy shutil socket subprocess sys
    """
)
"""Modules that others have imported: `random._os.system` is `os.system`."""
_LIBRARIES = _words(
    """
    PIL accelerate apex argparse bitsandbytes builtins collections dataclasses datasets datetime decimal
    deepspeed detectron2 diffusers einops enum fairseq fastai fractions fvcore gym gymnasium hydra
    lightning lightning_fabric lightning_utilities megatron mmcv mmdet mmengine monai numpy omegaconf
    open_clip pandas pathlib peft pytorch_lightning random ray scipy sentence_transformers sklearn
    speechbrain stable_baselines3 string tensordict timm tokenizers torch torch_geometric torchaudio
    torchmetrics torchtext torchvision transformers trl typing ultralytics uuid wandb xformers yacs
    """
)
_HARMLESS_FUNCTIONS = _words(
    """
    _io.BytesIO builtins.len collections.deque io.BytesIO numpy._core.multiarray._reconstruct
    numpy._core.multiarray.scalar numpy._core.numeric._frombuffer numpy.core.multiarray._reconstruct
    numpy.core.multiarray.scalar numpy.core.numeric._frombuffer numpy.dtype numpy.ndarray
    numpy.random._pickle.__bit_generator_ctor numpy.random._pickle.__generator_ctor
    numpy.random._pickle.__randomstate_ctor
    """
)
"""A library's functions, and classes whose names begin small, that only make a value."""


def kind_of(name: str) -> NameKind:
    """What is known of the dotted `name`."""
    parts = name.split(".")
    if name in _HARMLESS_FUNCTIONS:
        return "library"
    prefixes = {".".join(parts[:length]) for length in range(1, min(len(parts), 8) + 1)}
    if prefixes & _RUNNING_MODULES or prefixes & _RUNNING_NAMES:
        return "runs"
    if any(part.lstrip("_") in _WITHIN for part in parts[1:-1]):
        return "runs"
    is_class = len(parts) > 1 and parts[-1].isidentifier() and parts[-1].lstrip("_")[:1].isupper()
    return "library" if is_class and parts[0] in _LIBRARIES else "unknown"


def described(uses: Iterable[GlobalUse]) -> dict[str, dict[str, str | int]]:
    """`uses` as they stand in JSON."""
    return {
        use.name: {"count": use.count, "used_for": use.used_for, "kind": kind_of(use.name)} for use in uses
    }


def details(uses: Collection[GlobalUse]) -> dict[str, object]:
    """What the JSON of an error says of `uses`, the most telling first."""
    return {"globals": described(_ranked(uses)[:MAX_NAMES_IN_ERRORS]), "num_globals": len(uses)}


def _ranked(uses: Iterable[GlobalUse]) -> list[GlobalUse]:
    order = {"called": 0, "built": 1, "named": 2}
    return sorted(uses, key=lambda use: (kind_of(use.name) != "runs", order[use.used_for]))


def listed(uses: Iterable[GlobalUse]) -> str:
    """The most telling of `uses` for a sentence: those known to run something first, then those called."""
    names = [
        use.name if len(use.name) <= MAX_NAME_SHOWN else f"{use.name[:MAX_NAME_SHOWN]}…"
        for use in _ranked(uses)
    ]
    more = len(names) - MAX_NAMES_SHOWN
    return ", ".join(names[:MAX_NAMES_SHOWN]) + (f" and {more} more" if more > 0 else "")
