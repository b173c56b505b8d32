"""What a check finds: fields that code goes by, and the words that are made of them at the end.

A finding holds no sentence. Its kind has one, with places for the finding's fields: `{count}`, `{first}` and
`{places}` for the names, and the keys of `facts`; `[one|many]` is chosen by `count`, `<key=VALUE>` is an
option. The words stand here and
not in `render` because errors of `training` quote findings too.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum, unique
from typing import Literal

from ptsave.core.global_names import WORDS
from ptsave.errors import Option

Level = Literal["ok", "warn", "fail", "skipped"]
LEVELS: tuple[Level, ...] = ("fail", "warn", "ok", "skipped")
"""From what asks for attention to what does not."""
Facts = Mapping[str, int | float | str]
"""The numbers and short texts that a kind's words have places for, by key."""

_NO_FACTS: Facts = {}
"""One for all findings, of which there may be a hundred thousand."""
_CHOICE = re.compile(r"\[([^|\]]*)\|([^]]*)]")
_OPTION = re.compile(r"<(\w+)=(\w+)>")
_NAME_USED = "{used_for} {count}×; "


@unique
class Kind(Enum):
    """What a finding can say, and the words in which it is said."""

    # --- bytes ---
    IN_BOUNDS = "{count} [tensor lies|tensors lie] within the bounds of the file"
    MATCHES = "{count} [tensor matches its|tensors match their] {checksums}"
    UNPACKED = "unpacked, and the {kind} data matches the checksums that it states"
    SHA1_MATCHES = "the file matches the SHA-1 that the model states"
    CRCS_MATCH = "{count} [record matches its|records match their] CRC-32"
    INDEX_AGREES = "the index and the shards agree"
    DAMAGED = "damaged: {why}"
    UNREADABLE = "{why}"
    FORGED = "its {part} is not what ptsave writes: {why}"
    NOT_IN_FILE = "the record has its digest, the file does not have it"
    STALE_RECORD = (
        "was written with another {metadata}: that is damaged, or the folder was saved over; "
        "remove {record} to accept the folder as it is"
    )
    DEFLATED = (
        "the record is compressed: torch.load(mmap=True) would read its compressed bytes as values; "
        "convert the file"
    )
    NOT_LOADED = "{loader} does not load the file: {why}; convert it"
    CAST_SINCE = (
        "{count} [tensor (|tensors (such as ]{first!r}) [was|were] cast to {dtype} since [it was|they were] "
        "recorded, on the record's word alone, and no digest speaks for [it|them]"
    )
    INDEX_DIFFERS = "{note}"
    UNCLAIMED_BYTES = "{count} [byte belongs|bytes belong] to no record"
    TRAILING_BYTES = "{count} [byte follows|bytes follow] the last storage"
    NO_CRC = "the archive states no CRC-32 for {count} [record|records]"
    NO_CHECKSUM = (
        "{count} [tensor (|tensors (such as ]{first!r}) [has|have] no checksum to be checked against"
    )
    NO_DIGEST = (
        "{count} [tensor (|tensors (such as ]{first!r}) [has|have] no digest in the record, which should "
        "have one for each"
    )
    UNKNOWN_DIGEST = "digests of the unknown algorithm {algorithm!r}"

    # --- safe ---
    RUNS = f"{_NAME_USED}{WORDS['runs']}{{outcome}}"
    LIBRARY = f"{_NAME_USED}{WORDS['library']}{{outcome}}"
    UNKNOWN = f"{_NAME_USED}{WORDS['unknown']}{{outcome}}"
    UNREADABLE_BESIDE = "is beside it, a loader could take it, and it cannot be read: {why}"
    NOT_LOOKED_AT = "{count} [file|files] beside it (such as {first}) [was|were] not looked at"
    HAS_PROGRAM = "carries a program ({count} [file|files]): torch runs it when it loads or calls the model"
    NOTHING_RUNS = "names nothing that could run"

    # --- whole ---
    LEFT_OUT = "is left out: {what}"
    MORE_LEFT_OUT = "{count} more [is|are] left out"
    ELSEWHERE = "{why}: the weight is in another file"
    MORE_ELSEWHERE = "{count} more [weight is in another file|weights are in other files]"
    TRANSIENT = (
        "{count} [buffer (|buffers (such as ]{first}) [is not in its module's state dict, which makes it|"
        "are not in their modules' state dicts, which make them] again"
    )
    ALL_THERE = "{count} [tensor is|tensors are] all there is"
    ALL_ACCOUNTED = (
        "{count} [tensor is|tensors are] all there is, and every storage ({num_storages}) is accounted for"
    )

    # --- finite ---
    NOT_FINITE = "{nans} NaN, {infinities} infinite"
    SCALE_NOT_FINITE = "its scale is {scale}"
    INFINITE_ALLOWED = "infinite where that is allowed"
    INFINITE_CONSTANT = "infinite; the file says that it is a constant of its program, as a mask is"
    NO_WEIGHT = "not finite, and neither a weight nor an optimizer's state"
    NO_FLOATS = "there is no floating-point tensor"
    ALL_FINITE = "{count} floating-point [tensor|tensors], every element finite"

    # --- resume ---
    NO_TRAINING = "not a training checkpoint: it has no optimizer state"
    NO_WEIGHTS_BESIDE = "there are no weights beside it that the optimizer state could be checked against"
    ONLY_AVERAGES = "the only weights are averages: the optimizer's state belongs to those that were trained"
    SEVERAL = "{why}; to resume, {hint}"
    NO_STATE_DICT = "is a pickled object, not a state dict: nothing restores it"
    NO_GROUPS = "says nothing of its parameter groups: their order cannot be checked"
    TWICE_IN_GROUPS = "it has the parameter {param} twice in its groups"
    FLATTENED = (
        "the training is flattened into names, and nothing resumes from that: keep what it was converted from"
    )
    TEXT_KEYS = "its states are under text keys ('0', not 0): load_state_dict would attach none of them"
    OF_NO_PARAMETER = (
        "{count} [state (|states (such as ]{param!r}) [belongs|belong] to no parameter of its groups"
    )
    MIXED_OPTIMIZERS = "its options are those of {own}, the state of parameter {param} is that of {other}"
    SHAPES_UNLIKE = "its states do not have the shapes of the weights: their order cannot be checked"
    NO_SUCH_SHAPE = "the state of parameter {param} has the shape {shape}, and no weight has it"
    TOO_MANY_PARAMETERS = "it is another model's: it has {params} parameters, there are {weights} weights"
    TOO_MANY_STATES = (
        "it is another model's: it has {count} more [state|states] of the shape {shape} than weights"
    )
    MORE_STATES = "it has {count} more [state|states] of the shape {shape} than weights"
    ANOTHER_ORDER = (
        "another order: the state of parameter {param} has the shape {shape}, and {first!r} in its place "
        "has {expected}"
    )
    ORDER_UNLIKE = "its parameters come in another order than the weights"
    STATE_SHAPE = "the state of {first!r} has the shape {shape}, the weight {expected}"
    NO_SUCH_NAME = "it has a parameter {first!r}, and no weight has that name"
    NO_SUCH_NAMES = "it has a parameter {first!r} and {others} more, and no weights have those names"
    ANOTHER_NAME = "another order: parameter {param} is {first!r}, and {expected!r} is in its place"
    KEEPS_NOTHING = (
        "keeps nothing for its [parameter|{count} parameters]: it has not stepped, or has no memory"
    )
    STATES_GONE = "{count} of its {params} parameters [has|have] no state: frozen, or lost"
    COVERS_SOME = "covers {weights}: the others are frozen, buffers, or forgotten"
    COVERS = "covers {weights}, {order}"
    HAS = "has {parts}"
    HAS_NOT = "does not have {parts}: what the training used of these starts anew"

    # --- against ---
    NEEDS_OTHER = "needs a second checkpoint: <against=OTHER>"
    ONLY_HERE = "is not in {other}"
    ONLY_THERE = "is only in {other}"
    UNEQUAL = "{how}"
    TIED_HERE = "shares memory with {others} here only"
    TIED_THERE = "shares memory with {others} there only"
    CAST_TO = "{count} [tensor is|tensors are] {expected} there and {found} here, cast (such as {first!r})"
    CLOSE = "{count} of {total} tensors (such as {first!r}: {how}) [is|are] within the tolerance"
    DATA_UNEQUAL = "has another value there"
    SOME_DATA_UNEQUAL = (
        "{count} [value that is not a tensor differs or is in one alone|"
        "values that are not tensors differ or are in one alone]: {places}"
    )
    ONLY_MODELS = "only the models: {here} tensors here and {there} there were not compared"
    NO_TENSORS = "neither holds a tensor"
    ALL_EQUAL = "{count} [tensor is|tensors are] bitwise equal"
    NOT_COMPARED = "no outputs were compared: {why}"
    OTHER_FAILS = "{other} does not run: {why}"
    CANNOT_COMPARE = "the outputs cannot be compared: {why}"

    # --- signature ---
    PINNED = "{lock} pins what is here: {count} [tensor|tensors], {digest}"
    NOT_PINNED = "it is not what {lock} pins: {why}"
    NOT_IN_LOCK = "{lock} has no pin of it"
    NOT_SIGNED = "it is not signed"
    STRIPPED = "its statement has no signature: somebody took it off"
    FOREIGN = "it is signed by {found}, and not by {trusted}"
    FORGED_SIGNATURE = "it names {key}, which did not sign this: the statement or its signature was changed"
    MALFORMED_SIGNATURE = "a signature cannot be read: {why}"
    CERTIFICATE_FOREIGN = "the certificate of {who} leads to no authority that is trusted ({root})"
    CERTIFICATE_UNFIT = "the certificate of {who} does not count: {why}"
    OTHER_IDENTITY = "it is signed by {who}, and not by {expected}"
    NOT_LOGGED = "sigstore does not confirm who signed it: {why}"
    WEAK_DIGEST = "{key} signed digests of {algorithm}, for which other tensors can be made"
    SIGNATURE_EXPIRED = "the signature by {key} expired after {day}"
    KEY_OUT_OF_DATE = "the certificate {key} does not hold today: it is for {begin} to {end}"
    SIGNED_OTHER_NAMES = (
        "{key} signed {signed} tensors, {found} are here: some were added, dropped or renamed"
    )
    SIGNED_RENAMED = "{key} signed these values under other names: a map undoes that: <rename=RULE>"
    SIGNED_OTHER_LAYOUT = "{key} signed tensors of these names with another dtype or shape"
    SIGNED_SWAPPED = "{key} signed these names and these values, and not together: some were swapped"
    SIGNED_OTHER_VALUES = "{key} signed tensors of these names and shapes with other values"
    SIGNED_OTHER_TIES = "{key} signed other ties: tensors that share memory here, or did when it was signed"
    SIGNED_OTHER_DATA = "{key} signed other values beside the tensors: one was changed, added or dropped"
    SIGNED_OTHER_MODEL = "{key} signed another class, or other arguments or code of it, than the record names"
    SIGNED_INCONSISTENT = "{key} signed a statement that contradicts itself"
    SIGNED_CHANGED = "is not what {key} signed"
    SIGNED_ADDED = "is not among what {key} signed"
    SIGNED_GONE = "was signed by {key}, and is not here"
    CONTRADICTS = "statements by trusted keys contradict each other: {holding} of {count} hold"
    CANNOT_BE_SIGNED = "nothing that was signed can look like this: {why}"
    SIGNED_UNREAD = "its values could not be read, and are held to no signature"
    SIGNED = "{key} signed {count} [tensor|tensors]{more}"
    FILES_SIGNED = "{key} signed the {count} [file|files] of it, byte by byte"
    FILES_OTHER = "{key} signed other files: {why}"
    SIGNED_IN_PART = (
        "{count} [tensor (|tensors (such as ]{first!r}) [is|are] not covered: the signature is of {only}"
    )
    NOT_COVERED = "{count} [object (|objects (such as ]{first!r}) [is|are] covered by name, not by content"
    CONSTANTS_NOT_COVERED = (
        "{count} [constant|constants] of the program (such as {first!r}) [is|are] not covered"
    )
    MODEL_NOT_COVERED = "names a class that no signature covers"
    BESIDE_SIGNATURE = "no signature covers the metadata, the environment, the behaviour and the code itself"
    OTHER_SIGNATURE = "another signature, by {found}, was not checked"
    SIGNATURE_UNCHECKED = "signed by {found}; not checked: <signed_by=KEY>"

    # --- keys ---
    MISSING = "missing"
    MISSING_NEAR = "missing; the file has {near!r}"
    UNEXPECTED = "unexpected: the architecture has no such name"
    OTHER_SHAPE = "has the shape {found}, the architecture {expected}"
    OTHER_DTYPE = "has the dtype {found}, the architecture {expected}"
    OTHER_DTYPES = "{count} tensors (such as {first!r}) have the dtype {found}, the architecture {expected}"
    RECOMPUTED = "a buffer that the model computes by itself; not loaded"
    FITS = "{count} [tensor fits|tensors fit] the architecture"
    FITS_CHOSEN = "{count} [tensor fits|tensors fit] the architecture ({how})"
    WOULD_FIT = "would fit renamed: {how}"
    LOST_TIE = "lost tie: one parameter with {other!r} in the model, other values in the file"
    NEW_TIE = "lost tie: one tensor with {other!r} in the file, two parameters in the model"
    NEEDS_CONFIG = "needs a config: <config=CONFIG>"

    # --- behaviour and roundtrip ---
    NO_RECORD = "the checkpoint has no behaviour record: `ptsave save` and `verify --record` make one"
    NO_FIT = "the keys do not fit the architecture"
    NO_WEIGHTS = "the weights cannot be loaded: {why}"
    RUN_DAMAGED = "{why}; run with the damage"
    INPUTS_IN_FILES = (
        "the record names files as inputs, and no file that a record names is opened: "
        "`verify -c CONFIG --record` records them"
    )
    INPUTS_UNKNOWN = "it was recorded with inputs of files: name the config with <config=CONFIG>"
    OTHER_INPUTS = "the config's inputs are not those that it was recorded with"
    DOES_NOT_RUN = "the model does not run on the recorded inputs: {why}"
    RECORDED_TOO_MUCH = "the recorded inputs are too much for a file to ask for: {why}"
    NOT_DETERMINISTIC = "the model is not deterministic: {why} when it was recorded"
    RECREATED = "a value outside the state dict is not what it was: recreated, at random or from other code"
    EXCUSED = "not everything is bitwise equal, and the record's word excuses it: {why}"
    LOST_BUFFER = "a buffer outside the state dict is not what it was: uninitialised, or made otherwise"
    TRAIN_MODE = "left in train mode: it stays in training after eval()"
    TRAIN_MODE_INSIDE = (
        "left in train mode: it stays in training after eval(), and so do modules inside it ({inside})"
    )
    STILL_TRAIN_MODE = "stays in train mode after eval(), as it did when recorded: {places}"
    NO_OUTPUT = "the model returns no tensor that could be compared"
    OUTPUT_UNLIKE = "{why_not}"
    VOID_OUTPUT = "nothing was compared: it has no elements, or all are NaN or infinite"
    EQUAL_OUTPUT = "bitwise equal"
    OUTPUT_TOLERATED = "within the tolerance of the config: {off}"
    OUTPUT_DIFFERS = "differs: {off}"
    OUTPUT_VARIES = "the model is not deterministic, and two runs of it differ as much: {off}"
    OUTPUT_EXPLAINED = "explained by rounding{besides}: {off}"
    SURPRISING = (
        "not bitwise equal, though the environment is and the model is deterministic: begins in "
        "{module}, {relative:.2g} off"
    )
    COARSER_CODE = "its code computes in {dtype}, and did not when it was recorded"
    OTHER_STRUCTURE = "{structure}"
    FIRST_TO_DEPART = "first to depart: {module}{call}, {relative:.2g} off, {inputs}"
    CANNOT_HOLD = "the format cannot hold the model: {why}"
    CANNOT_REREAD = "what was written cannot be loaded: {why}"
    UNINITIALISED = (
        "uninitialised buffer: the state dict leaves it out, and the class makes another each time"
    )
    CHANGED = "differs after a round trip through {format}"
    OUTPUT_CHANGED = "the output differs after a round trip through {format}{how}"
    EQUAL_OUTPUTS = "[the output is|{count} outputs are] bitwise equal on {device}"

    # --- exported programs ---
    SAME_WEIGHTS = "{count} [tensor|tensors] of the program [is|are] the checkpoint's, bit by bit"
    OTHER_WEIGHT = "is not the checkpoint's in the program: {how}"
    NOT_IN_PROGRAM = "{count} [tensor is|tensors are] not used by the program: {places}"
    CONSTANTS = "{count} [constant|constants] of the program that the exporter made: {places}"
    SIZE_IS_BOUND = "is at most {most}: the model's code takes no more"
    SIZE_NOT_RUN = "the model itself does not run at {sizes}: {why}"
    PROGRAM_FAILS = "the exported program does not run: {why}"
    PROGRAM_FAILS_AT = "the exported program is fixed: at {sizes}, where the model runs, it does not: {why}"
    PROGRAM_DEPARTS = "first to depart: {module}, {relative:.2g} off"
    PROGRAM_DEPARTS_BEFORE = (
        "first to depart: the code of {module}, {relative:.2g} off in what it gives to {before!r}"
    )
    NO_PROGRAM_RECORD = "it is not an exported program with a record, as `convert -c` writes them"
    PROGRAM_UNSAFE = "it is not run: it names what is not in the allow-list (check safe)"
    PROGRAM_NOT_RUN = "{nodes}it is run where this check is named (<checks=program>)"
    NO_RUNTIME = "{nodes}it is not run: {why}"
    SAME_NODES = "{count} [node is the one that was|nodes are those that were] exported"
    OTHER_NODE = "is not the node that was exported: {operator}"
    NEW_NODE = "is a node that was not exported: {operator}"
    GONE_NODE = "was a node when it was exported, and is none now"
    ONE_PROCESS = "one process does it: run verify without torchrun, where the model fits"


@dataclass(frozen=True, slots=True)
class Finding:
    """One thing that one check found out."""

    check: str
    level: Level
    where: str
    """The tensor, module or file that it is about; empty for the whole."""
    kind: Kind
    """What it says, and all that code goes by."""
    count: int | None = None
    """Of how many things it is said; those of several ranks are added up."""
    places: tuple[str, ...] = ()
    """The names among these things that are worth showing."""
    facts: Facts = field(default_factory=lambda: _NO_FACTS, hash=False)
    parameters: Collection[str] | None = field(default=None, compare=False, repr=False)
    """Those of the Python function that returns it, as `PtsaveError` has them; None for a command."""

    @property
    def message(self) -> str:
        """What it says, in words."""
        words = _OPTION.sub(lambda option: Option(*option.groups()).spelled(self.parameters), self.kind.value)
        if self.count is not None:
            words = _CHOICE.sub(r"\1" if self.count == 1 else r"\2", words)
        first = self.places[0] if self.places else ""
        return words.format(count=self.count, first=first, places=first_names(self.places), **self.facts)

    def __str__(self) -> str:
        """`encoder.weight: 3 NaN, 0 infinite`."""
        return f"{self.where}: {self.message}" if self.where else self.message


def merge(findings: Sequence[Finding]) -> list[Finding]:
    """The findings of several processes on their shares of one checkpoint: counts are added up, and a check
    that failed in one of them has passed in none."""
    judged = {(f.check, f.where) for f in findings if f.level != "skipped"}
    failed = {f.check for f in findings if f.level == "fail"}
    merged: dict[object, Finding] = {}
    for f in findings:
        if f.level == "skipped" and f.count is None and (f.check, f.where) in judged:
            continue  # this share has nothing to check
        if f.level == "ok" and f.count is not None and f.check in failed:
            continue
        key = (f.check, f.level, f.where, f.kind, tuple(f.facts.items()))
        if f.count is not None and (before := merged.get(key)) is not None:
            f = replace(f, count=f.count + (before.count or 0), places=(*before.places, *f.places))
        merged[key] = f
    return list(merged.values())


def counted(number: int, one: str, many: str) -> str:
    """`1 tensor lies …`, `4 tensors lie …`."""
    return f"{number} {one if number == 1 else many}"


def first_names(names: Sequence[str]) -> str:
    """The first few names of many."""
    shown = ", ".join(names[:3])
    return f"{shown}, …" if len(names) > 3 else shown


def places(findings: Iterable[Finding], check: str, level: Level) -> list[str]:
    """Where the findings of one check and level are, each place once."""
    return list(dict.fromkeys(f.where for f in findings if (f.check, f.level) == (check, level)))


def failed_of(findings: Iterable[Finding], *kinds: Kind) -> list[str]:
    """Where the failures of some kinds are, each place once."""
    return list(dict.fromkeys(f.where for f in findings if f.kind in kinds and f.level == "fail"))
