"""The TOML: what is read, overridden, refused, and kept in a record."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ptsave.config import model
from ptsave.config import toml as config_module
from ptsave.config.input_tables import recorded_inputs
from ptsave.config.inputs import DataTensor, DictOf, FileTensor, ListOf, PlainValue, RandomTensor
from ptsave.config.model import ModelSpec
from ptsave.config.toml import Config, ParallelSpec, Tolerance, load_config
from ptsave.core.dtypes import BY_NAME
from ptsave.errors import CorruptError, LimitError, MissingFileError, UsageError
from tests.support import examples

MODEL = '[model]\nclass = "pkg.Net"\n'
FULL = """
[model]
class = "pkg.mod:Net"
[model.args]
size = 10
rate = 0.5
dtype = {_dtype_ = "torch.float16"}
layers = [{_target_ = "pkg.Layer", _args_ = [1, 2], width = 3}, {_import_ = "pkg.Block"}]
norm = {_target_ = "pkg.Norm", _partial_ = true, eps = 1e-6}
bound = inf

[inputs]
file = "x.npz"
[inputs.a]
shape = [4, 10]
[inputs.b]
shape = []
dtype = "int64"
low = -3
high = 5
seed = 7
[inputs.c]
data = [[1, 2], [3, 4]]
dtype = "uint8"
[inputs.d]
value = true
[inputs.e]
list = [{shape = [2], low = 0}, {file = "y.npy"}, {file = "z.npz", key = "z"}]
[inputs.f.dict.g]
shape = [1]
mean = 1
std = 0

[verify]
rtol = 1.3e-6

[parallel]
mesh = {dp = 2, tp = 2}
wrap = ["pkg.mod.Block", "blocks.*"]
[parallel.tensor]
"blocks.*.ff.0" = "colwise"
"""


def write(folder: Path, text: str) -> Path:
    path = folder / "model.toml"
    path.write_text(text, encoding="utf-8")
    return path


def load(folder: Path, text: str, *overrides: str) -> Config:
    return load_config(write(folder, text), overrides)


def refusal(folder: Path, text: str, *overrides: str) -> UsageError:
    with pytest.raises(UsageError) as caught:
        load(folder, text, *overrides)
    assert caught.value.hint
    return caught.value


def test_everything(tmp_path: Path) -> None:
    config = load(tmp_path, FULL)
    assert config.path == tmp_path / "model.toml"
    assert config.model.target == "pkg.mod:Net"
    assert not config.model.is_factory
    assert config.model.args["size"] == 10
    assert config.tolerance == Tolerance(rtol=1.3e-6)
    assert config.parallel == ParallelSpec(
        {"dp": 2, "tp": 2}, ("pkg.mod.Block", "blocks.*"), {"blocks.*.ff.0": "colwise"}
    )
    assert list(config.parallel.mesh) == ["dp", "tp"]
    assert config.inputs is not None
    assert config.inputs.file == "x.npz"
    assert config.inputs.folder == tmp_path
    assert config.inputs.named == {
        "a": RandomTensor((4, 10)),
        "b": RandomTensor((), BY_NAME["int64"], 7, -3, 5),
        "c": DataTensor([[1, 2], [3, 4]], BY_NAME["uint8"]),
        "d": PlainValue(True),
        "e": ListOf((RandomTensor((2,), low=0.0, high=1.0), FileTensor("y.npy"), FileTensor("z.npz", "z"))),
        "f": DictOf({"g": RandomTensor((1,), mean=1.0, std=0.0)}),
    }


def test_the_least(tmp_path: Path) -> None:
    config = load(tmp_path, MODEL)
    assert (config.inputs, config.tolerance, config.parallel) == (None, None, None)
    assert config.model.args == {}


def test_factory(tmp_path: Path) -> None:
    assert load(tmp_path, '[model]\nfactory = "train:main"').model == ModelSpec(
        "train:main", {}, True, load(tmp_path, MODEL).model.place
    )


def test_byte_order_mark(tmp_path: Path) -> None:
    assert load(tmp_path, "\ufeff" + MODEL).model.target == "pkg.Net"


# --- the record -------------------------------------------------------------------------------------


def test_specs_survive_a_record(tmp_path: Path) -> None:
    config = load(tmp_path, FULL)
    assert config.inputs is not None
    text = json.dumps([config.model.to_json(), config.inputs.to_json()], allow_nan=False)
    model, inputs = json.loads(text)
    again = ModelSpec.from_json({**model, "source_digest": "00"}, "a.pt")
    assert again.target == config.model.target
    assert again.args == {**config.model.args, "bound": {"_float_": "inf"}}
    assert again.to_json() == config.model.to_json()
    read = recorded_inputs(inputs, "a.pt")
    assert (read.named, read.positional, read.file) == (config.inputs.named, (), "x.npz")


def test_a_factory_survives_a_record() -> None:
    spec = ModelSpec("a.b", {"x": 1}, is_factory=True)
    again = ModelSpec.from_json({**spec.to_json(), "class": "ignored.Type"}, "")
    assert (again.target, again.is_factory) == ("a.b", True)


@pytest.mark.parametrize(
    "document", [{}, {"class": 3}, {"class": "a.b", "args": []}, {"class": "../x"}, {"class": "a.b\n.c"}]
)
def test_a_malformed_model_in_a_record_is_corrupt(document: dict[str, object]) -> None:
    with pytest.raises(CorruptError, match="record is malformed") as caught:
        ModelSpec.from_json(document, "a.pt")
    assert caught.value.where.startswith("a.pt: model")


# --- --set ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "args"),
    [
        ("model.args.size=64", {"size": 64}),
        ("model.args.size = 64", {"size": 64}),
        ('model.args.name="a=b"', {"size": 10, "name": "a=b"}),
        ("model.args.name='literal'", {"size": 10, "name": "literal"}),
        ("model.args.sizes=[1, 2]", {"size": 10, "sizes": [1, 2]}),
        ('model.args."odd = key"=1', {"size": 10, "odd = key": 1}),
        ('model.args.inner={_target_="a.B", x=1}', {"size": 10, "inner": {"_target_": "a.B", "x": 1}}),
        ("model.args={}", {}),
        ("model.args.new.deep=true", {"size": 10, "new": {"deep": True}}),
        ("model.args.rate=-1e-3", {"size": 10, "rate": -1e-3}),
    ],
)
def test_override(tmp_path: Path, override: str, args: dict[str, object]) -> None:
    assert load(tmp_path, MODEL + "[model.args]\nsize = 10\n", override).model.args == args


def test_the_last_override_wins(tmp_path: Path) -> None:
    assert load(tmp_path, MODEL, "model.args.a=1", "model.args.a=2").model.args == {"a": 2}


def test_override_of_an_array_of_tables(tmp_path: Path) -> None:
    config = load(tmp_path, MODEL + "[[inputs]]\nshape = [2]\n", "inputs.0.shape=[5]")
    assert config.inputs is not None
    assert config.inputs.positional == (RandomTensor((5,)),)


@pytest.mark.parametrize(
    ("override", "what", "hint"),
    [
        ("model.args.act=relu", "'relu' is not a TOML value", """--set 'model.args.act="relu"'"""),
        ("model.args.path=C:\\x", "is not a TOML value", '"C:\\\\x"'),
        ("model.args.act=", "'' is not a TOML value", "quotes"),
        ("model.args.a=1\nmodel.args.b=2", "is not a TOML value", ""),
        ("model.args", "is not KEY=VALUE", "for example"),
        ("=1", "is not KEY=VALUE", "for example"),
        ("a b=1", "is not KEY=VALUE", "for example"),
        ("model.class.deep=1", "model.class is not a table", ""),
        ("inputs.1.shape=[1]", "there is no item 1 in inputs", "count from 0"),
        ("inputs.x.shape=[1]", "there is no item x in inputs", "count from 0"),
        ("model.args.a=" + "[" * 10000, "is not a TOML value", ""),
    ],
)
def test_override_refused(tmp_path: Path, override: str, what: str, hint: str) -> None:
    error = refusal(tmp_path, MODEL + "[[inputs]]\nshape = [2]\n", override)
    assert what in error.what
    assert error.where.startswith("--set ")
    assert hint in error.hint


# --- refusals ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "where", "what", "hint"),
    [
        ("", "", "has no [model] table", "pkg.mod.Name"),
        ("[modle]\n", ": modle", "unknown key 'modle'", "did you mean 'model'?"),
        ("[model]\n", ": model", "exactly one of", "class ="),
        ('[model]\nclass = "a.b"\nfactory = "a.c"', ": model", "exactly one of", ""),
        ('[model]\nclas = "a.b"', ": model.clas", "unknown key 'clas'", "did you mean 'class'?"),
        ("[model]\nclass = 3", ": model.class", "must be a string, not 3", 'class = "text"'),
        ('[model]\nclass = "Net"', ": model.class", "'Net' is not an import path", "pkg.mod.Name"),
        ('[model]\nclass = "a..b"', ": model.class", "is not an import path", ""),
        ('[model]\nclass = "a:b:c"', ": model.class", "is not an import path", ""),
        ('[model]\nclass = ":b"', ": model.class", "is not an import path", ""),
        ('[model]\nclass = "src/net.py:Net"', ": model.class", "is a file's path", "--app-dir"),
        (MODEL + "args = 3", ": model.args", "must be a table, not 3", "args = {key = 1}"),
        (MODEL + "args.when = 2020-01-01", ": model.args.when", "a date or time", "quote it"),
        (MODEL + 'args.t = [{_dtype_ = "flot32"}]', ": model.args.t.0._dtype_", "unknown dtype", "'float32'"),
        (MODEL + 'args.t = {_dtype_ = "int8", x = 1}', ": model.args.t", "stands alone", ""),
        (MODEL + 'args.t = {_targt_ = "a.b"}', ": model.args.t._targt_", "unknown key", "'_target_'"),
        (MODEL + "args.t = {_target_ = 1}", ": model.args.t._target_", "must be a string", "_target_ ="),
        (MODEL + "args.t = {_partial_ = true}", ": model.args.t", "no _target_", "_target_"),
        (MODEL + 'args.t = {_float_ = "one"}', ": model.args.t._float_", "nan", "_float_"),
        (MODEL + 'args._target_ = "a.b"', ": model.args._target_", "inside model.args", "model.class"),
        (MODEL + "[inputs.x]\nshap = [1]", ": inputs.x.shap", "unknown key 'shap'", "'shape'"),
        (MODEL + "[inputs.x]\nseed = 1", ": inputs.x", "needs one of", "{shape"),
        (MODEL + "[inputs.x]\nshape = [1]\ndata = [1]", ": inputs.x", "both shape and data", ""),
        (MODEL + "[inputs.x]\nshape = [1]\nkey = 'a'", ": inputs.x.key", "unknown key 'key'", ""),
        (MODEL + "[inputs]\nx = 3", ": inputs.x", "must be a table", "{value = …}"),
        (MODEL + "[inputs]\nfile = 3", ": inputs.file", "must be a string, not 3", "file ="),
        (MODEL + "[inputs.x]\nshape = 4", ": inputs.x.shape", "must be an array", "shape = [4, 10]"),
        (MODEL + "[inputs.x]\nshape = [1.5]", ": inputs.x.shape.0", "not 1.5", "shape"),
        (MODEL + "[inputs.x]\nshape = [true]", ": inputs.x.shape.0", "must be an integer", "shape = 10"),
        (MODEL + "[inputs.x]\nshape = [-1]", ": inputs.x.shape", "[-1] is not a shape", ""),
        (MODEL + f"[inputs.x]\nshape = {[1] * 65}", ": inputs.x.shape", "is not a shape", "64"),
        (MODEL + "[inputs.x]\nshape = [999999, 999999]", ": inputs.x.shape", "MAX_INPUT_BYTES", "batch"),
        (MODEL + "[inputs.x]\nshape = [1]\ndtype = 'f32'", ": inputs.x.dtype", "unknown dtype 'f32'", ""),
        (MODEL + "[inputs.x]\nshape = [1]\ndtype = 'qint8'", ": inputs.x.dtype", "generated", "file"),
        (MODEL + "[inputs.x]\nshape = [1]\nstd = -1", ": inputs.x.std", "not a usable std", ""),
        (MODEL + "[inputs.x]\nshape = [1]\nmean = nan", ": inputs.x.mean", "not a usable mean", ""),
        (MODEL + "[inputs.x]\nshape = [1]\nmean = true", ": inputs.x.mean", "not true", ""),
        (MODEL + "[inputs.x]\nshape = [1]\nlow = 2", ": inputs.x", "is not a range", "low < high"),
        (MODEL + "[inputs.x]\nshape = [1]\nlow = 2\nmean = 1", ": inputs.x", "both low/high", "uniform"),
        (MODEL + "[inputs.x]\nshape = [1]\ndtype = 'int8'\nhigh = 129", ": inputs.x", "range of int8", "128"),
        (MODEL + "[inputs.x]\nshape = [1]\ndtype = 'int8'\nlow = 3\nhigh = 3", ": inputs.x", "range", ""),
        (MODEL + "[inputs.x]\nshape = [1]\ndtype = 'bool'\nhigh = 3", ": inputs.x", "range of bool", ""),
        (MODEL + "[inputs.x]\nshape = [1]\ndtype = 'int8'\nstd = 1", ": inputs.x.std", "for floats", "low"),
        (MODEL + "[inputs.x]\nshape = [1]\ndtype = 'int8'\nlow = 0.5", ": inputs.x.low", "an integer", ""),
        (MODEL + "[inputs.x]\ndata = [[1], [2, 3]]", ": inputs.x.data.1", "ragged", "pad"),
        (MODEL + "[inputs.x]\ndata = ['a']", ": inputs.x.data.0", "must be a number", ""),
        (MODEL + "[inputs.x]\nlist = [3]", ": inputs.x.list.0", "must be a table", ""),
        (MODEL + "[inputs.x.value]\n_target_ = 'a.b'", ": inputs.x.value._target_", "model.args", ""),
        (MODEL + "[verify]\ntol = 1", ": verify.tol", "unknown key 'tol'", "'rtol'"),
        (MODEL + "[verify]\nrtol = '1'", ": verify.rtol", "must be a number", ""),
        (MODEL + "[verify]\nsigned_by = 'keys'", ": verify.signed_by", "must be an array", "signed_by = ["),
        (MODEL + "[verify]\nsigned_by = [1]", ": verify.signed_by.0", "must be a string", ""),
        (MODEL + "[verify]\nsigned = []", ": verify.signed", "unknown key", "signed_by"),
        (MODEL + "[verify]\natol = inf", ": verify.atol", "not a tolerance", ""),
        (MODEL + "[parallel]\nmesh = {pp = 2}", ": parallel.mesh.pp", "unknown key 'pp'", "dp"),
        (MODEL + "[parallel]\nmesh = {dp = 0}", ": parallel.mesh.dp", "not a number of ranks", ""),
        (MODEL + "[parallel]\nwrap = 'a'", ": parallel.wrap", "must be an array", ""),
        (MODEL + "[parallel.tensor]\na.b = 'colwise'", ": parallel.tensor.a", "must be a string", "quote"),
        (MODEL + "[parallel.tensor]\n'a.b' = 'colwis'", ': parallel.tensor."a.b"', "style", "'colwise'"),
    ],
)
def test_refused(tmp_path: Path, text: str, where: str, what: str, hint: str) -> None:
    error = refusal(tmp_path, text)
    assert what in error.what
    assert error.where == f"{tmp_path / 'model.toml'}{where}"
    assert hint in error.hint


def test_a_syntax_error_names_line_and_column(tmp_path: Path) -> None:
    error = refusal(tmp_path, '[model]\nclass = "a.b"\nx = = 1\n')
    assert "line 3, column 5" in error.what


@pytest.mark.parametrize("content", [b"\x80\x02}q\x00.", b"a = " + b"[" * 100_000, b"a = " + b"9" * 5000])
def test_what_is_not_a_config(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.toml"
    path.write_bytes(content)
    with pytest.raises(UsageError) as caught:
        load_config(path)
    assert caught.value.where.startswith(str(path))


def test_keys_that_nest_too_deeply(tmp_path: Path) -> None:
    deep = "a." * 3000 + "a = 1"
    assert "nests too deeply" in refusal(tmp_path, f"{MODEL}args.{deep}").what
    nested: list[object] = []
    for _ in range(3000):
        nested = [nested]
    with pytest.raises(CorruptError, match="too deep"):
        ModelSpec.from_json({"class": "a.b", "args": {"x": nested}}, "a.pt")
    with pytest.raises(CorruptError, match="too deep"):
        recorded_inputs({"named": {"x": {"value": nested}}}, "a.pt")


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="no such file"):
        load_config(tmp_path / "no.toml")
    with pytest.raises(MissingFileError, match="a directory"):
        load_config(tmp_path)


def test_a_huge_file_is_not_read(tmp_path: Path) -> None:
    path = tmp_path / "big.toml"
    with path.open("wb") as file:
        os.truncate(file.fileno(), 1 << 40)
    with pytest.raises(LimitError, match="MAX_CONFIG_BYTES"):
        load_config(path)


KEYS = st.sampled_from(
    [
        "model",
        "class",
        "factory",
        "args",
        "inputs",
        "verify",
        "parallel",
        "mesh",
        "wrap",
        "tensor",
        "shape",
        "dtype",
        "seed",
        "low",
        "high",
        "mean",
        "std",
        "data",
        "file",
        "key",
        "value",
        "list",
        "dict",
        "rtol",
        "atol",
        "x",
        "dp",
        "tp",
        "_target_",
        "_args_",
        "_partial_",
        "_dtype_",
        "_import_",
        "_float_",
        "0",
        "1",
    ]
)
VALUES = st.recursive(
    st.one_of(
        st.integers(),
        st.integers(-3, 300),
        st.floats(),
        st.booleans(),
        st.sampled_from(["a.b", "a:b", "float32", "int8", "bool", "nan", "colwise", ""]),
        st.dates(),
    ),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=4)),
    max_leaves=12,
)
TABLES = st.dictionaries(KEYS, VALUES, max_size=4)


@settings(max_examples=examples(300), suppress_health_check=[HealthCheck.too_slow])
@given(
    st.fixed_dictionaries(
        {"model": st.one_of(TABLES, st.just({"class": "a.b"}))},
        optional={"inputs": VALUES, "verify": TABLES, "parallel": TABLES},
    ),
    st.lists(st.tuples(st.lists(KEYS, min_size=1, max_size=4), st.text(max_size=8)), max_size=2),
)
def test_any_document_is_read_or_refused(
    document: dict[str, object], sets: list[tuple[list[str], str]]
) -> None:
    """Nothing but the errors of ours leaves the parser; what it takes survives a record."""
    with contextlib.suppress(UsageError):
        for keys, value in sets:
            config_module._override(document, f"{'.'.join(keys)}={value}")
    try:
        config = config_module._parse(document, Path("c.toml"))
    except UsageError:
        return
    text = json.dumps([config.model.to_json(), config.inputs and config.inputs.to_json()], allow_nan=False)
    model, inputs = json.loads(text)
    assert ModelSpec.from_json(model, "").to_json() == model
    if config.inputs is not None:
        assert recorded_inputs(inputs, "").to_json() == inputs


def test_no_torch_and_no_numpy(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from ptsave.config.toml import load_config;"
        "load_config(Path(sys.argv[1])); print({'torch', 'numpy'} & set(sys.modules))"
    )
    run = subprocess.run(
        [sys.executable, "-c", script, str(write(tmp_path, FULL))], capture_output=True, text=True, check=True
    )
    assert run.stdout.strip() == "set()"


def test_a_record_has_no_more_arguments_than_a_model(monkeypatch: pytest.MonkeyPatch) -> None:
    many = {"class": "m.n", "args": {"labels": {str(i): [i] for i in range(50)}}}
    assert ModelSpec.from_json(many, "").args == many["args"]
    monkeypatch.setattr(model, "MAX_ARGS", 100)
    with pytest.raises(CorruptError, match="more than MAX_ARGS = 100 values"):
        ModelSpec.from_json(many, "")


def test_few_odd_keys_are_compared_with_markers(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[str] = []
    monkeypatch.setattr(model, "nearest", lambda key, markers: asked.append(key))
    ModelSpec.from_json({"class": "m.n", "args": {"a": {f"_a{i}_": 0 for i in range(1000)}}}, "")
    assert len(asked) == model.MAX_ASKED
