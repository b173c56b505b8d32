"""Names in TorchScript code, as torch's own lexer has them."""

from __future__ import annotations

import time
from contextlib import suppress

import pytest

from ptsave.errors import CorruptError, LimitError
from ptsave.formats.programs import operators
from ptsave.formats.programs.operators import is_plain, names_in


def names(code: str) -> set[str]:
    return set(names_in(code, "m.py"))


@pytest.mark.parametrize(
    "code",
    [
        'torch.save(x, "f")',
        'ops.aten.save(x, "f")',
        'x.save("f")',
        "f = torch.save\nf(x, 'f')",
        'torch \\\n . \\\n save(x, "f")',
        'torch.  # it\n save(x, "f")',
        'y = "\'"; torch.save(x, "\'")',
        'y = "\\\\"; torch.save(x, "")',
        "y = '''\"'''; torch.save(x, '''\"''')",
        'y = """a"""; torch.save(x, """b""")',
        '# "\ntorch.save(x, "f")',
        'getattr(torch, "save")(x, "f")',
        'getattr(torch, "s\\141ve")(x, "f")',
        'getattr(torch, "sa" \'ve\')(x, "f")',
        'getattr(torch, "sa" \\\n "" # x\n """ve""")(x, "f")',
    ],
)
def test_what_writes_a_file_is_named_however_it_is_spelled(code: str) -> None:
    assert names(code) == {"torch.save"}


@pytest.mark.parametrize(
    "code",
    [
        "return torch.add(self.saved, ops.quantized.linear(x, self.packed, 1., 0))",
        'y = "please save"; return x',
        'ops.prim.RaiseException("save the \\"save\\" file")',
        "# save\nreturn x",
        'getattr(self, "0")',
        "self.ops.image",
        "dropsave = ops.torchvision.nms(boxes, scores, 0.5)",
        "'''\nsave '''",
    ],
)
def test_what_computes_is_not_named(code: str) -> None:
    assert not names(code)


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ('torch.from_file("f", True, 8)', {"torch.from_file"}),
        ("ops.image.read_file(p)", {"torch.ops.image"}),
        ("ops \\\n . image.read_file(p)", {"torch.ops.image"}),
        ("o = ops\no.image.read_file(p)", {"torch.ops.*"}),
        ("rpc_sync(w, f)", {"torch.distributed.rpc.rpc_sync"}),
        ('getattr(self, "0"); ops.prim.RaiseException("save")', {"torch.save"}),  # could be the same
    ],
)
def test_other_operators(code: str, expected: set[str]) -> None:
    assert names(code) == expected


@pytest.mark.parametrize(
    "code",
    [
        'save; "x',
        'save; """x"',
        '"""x"' + "\\a" * 100_001 + '"""; torch.save(x, """f""")',
    ],
)
def test_a_literal_that_does_not_end(code: str) -> None:
    with pytest.raises(CorruptError, match="literal that does not end"):
        names(code)


def test_code_of_literals_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(operators, "MAX_CODE_TOKENS", 1000)
    with pytest.raises(LimitError, match="code_tokens = 1000"):
        names("getattr " + '"",' * 1001)


@pytest.mark.parametrize("piece", ['\\"', '"', "'\\", "#", '"""', "save ", "ops\\\n", '"a" '])
def test_the_time_grows_with_the_text(piece: str) -> None:
    begin = time.process_time()
    with suppress(CorruptError, LimitError):
        names("getattr " + piece * (1_000_000 // len(piece)))
    assert time.process_time() - begin < 2


def test_operators_of_an_exported_program() -> None:
    assert is_plain("aten", "add")
    assert is_plain("torchvision", "nms")
    assert not is_plain("aten", "from_file")
    assert not is_plain("image", "write_file")
