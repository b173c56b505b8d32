"""Which optimizer or scheduler a state dict belongs to, as far as its keys show: the class is not saved.

Sources: `self.defaults` and the state keys of every class in torch.optim (2.13), and the keys of
torch.optim.lr_scheduler; for the rest, the defaults of transformers' AdamW and Adafactor, of bitsandbytes,
and of the reference implementations of Lion and Muon.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

IMPLEMENTATION_OPTIONS = frozenset(
    {"params", "param_names", "foreach", "fused", "capturable", "differentiable", "maximize", "name"}
)
"""Keys of a parameter group that do not tell how it is updated."""

STATE_KEYS = frozenset(
    {
        *("step", "exp_avg", "exp_avg_sq", "max_exp_avg_sq", "momentum_buffer", "sum", "square_avg"),
        *("grad_avg", "acc_delta", "exp_inf", "mu_product", "prev", "step_size", "eta", "mu", "ax"),
        *("row_var", "col_var", "variance", "exp_avg_sq_row", "exp_avg_sq_col", "exp_avg_var", "state1"),
        *("state2", "z", "d", "old_dirs", "old_stps", "prev_flat_grad", "exp_avg_diff"),
    }
)
"""What optimizers keep for each parameter."""

_BY_OPTIONS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (kind, frozenset(keys.split()))
    for kind, keys in (
        ("LBFGS", "max_iter history_size"),
        ("Rprop", "etas step_sizes"),
        ("ASGD", "lambd t0"),
        ("Adagrad", "lr_decay"),
        ("RMSprop", "alpha centered"),
        ("Adafactor", "beta2_decay d"),
        ("Adafactor", "scale_parameter relative_step"),
        ("Muon", "ns_steps"),
        ("Muon", "use_muon"),
        ("NAdam", "momentum_decay"),
        ("Adadelta", "rho eps"),
        ("AdamW (transformers)", "betas correct_bias"),
    )
)
"""Kind, and the keys of a parameter group that only it has; the first that fits is taken."""

_BY_STATE: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (kind, frozenset(keys.split()))
    for kind, keys in (
        ("Adamax", "exp_inf"),
        ("NAdam", "mu_product"),
        ("Adadelta", "acc_delta"),
        ("ASGD", "ax eta"),
        ("Rprop", "prev step_size"),
        ("LBFGS", "old_dirs old_stps"),
        ("Adafactor", "row_var col_var"),
        ("Adafactor", "exp_avg_sq_row exp_avg_sq_col"),
        ("Adam or AdamW, 8-bit", "state1 state2"),
        ("RMSprop", "square_avg"),
        ("Adagrad", "sum"),
        ("SGD", "momentum_buffer"),
    )
)
"""Kind, and the state keys that only it has; for groups that say nothing."""


def optimizer_kind(options: Mapping[str, Any], state_keys: Collection[str]) -> str:
    """The class of the optimizer whose first parameter group is `options`; `unknown` when nothing shows."""
    for kind, keys in _BY_OPTIONS:
        if keys <= options.keys():
            return kind
    if "dampening" in options or ("nesterov" in options and "momentum" in options):
        if not options.get("momentum"):
            return "SGD"
        return "SGD with Nesterov momentum" if options.get("nesterov") else "SGD with momentum"
    state = set(state_keys)
    for kind, keys in _BY_STATE:
        if keys <= state:
            return kind
    if "betas" in options or "exp_avg" in state:
        return _adam_kind(options, state)
    return "unknown"


def _adam_kind(options: Mapping[str, Any], state: set[str]) -> str:
    """Which of Adam's relatives: they share `betas` and differ in what else they have."""
    has_second_moment = not state or "exp_avg_sq" in state
    if "eps" not in options and options and "exp_avg_sq" not in state:
        return "Lion"
    if not has_second_moment:
        return "unknown"
    if "amsgrad" in options:
        if "decoupled_weight_decay" in options:
            return "AdamW" if options["decoupled_weight_decay"] else "Adam"
        return "Adam or AdamW"
    if "decoupled_weight_decay" in options:
        return "RAdam"
    if options and "weight_decay" not in options:
        return "SparseAdam"
    return "a kind of Adam"


_STATES: dict[str, frozenset[str]] = {
    kind: frozenset(keys.split())
    for kind, keys in {
        "Adam": "exp_avg exp_avg_sq",
        "AdamW": "exp_avg exp_avg_sq",
        "Adam or AdamW": "exp_avg exp_avg_sq",
        "SparseAdam": "exp_avg exp_avg_sq",
        "RAdam": "exp_avg exp_avg_sq",
        "NAdam": "exp_avg exp_avg_sq mu_product",
        "Adamax": "exp_avg exp_inf",
        "SGD": "momentum_buffer",
        "RMSprop": "square_avg",
        "Adagrad": "sum",
        "Adadelta": "square_avg acc_delta",
        "Rprop": "prev step_size",
        "ASGD": "eta mu ax",
    }.items()
}
"""Class of torch.optim → what it keeps for every parameter that it has stepped, if it keeps anything.
Source: torch/optim/*.py (`_init_group`)."""
_VAGUE = frozenset({"unknown", "a kind of Adam"})
_LATE = frozenset({"decoupled_weight_decay", "initial_lr", *IMPLEMENTATION_OPTIONS})
"""Options that newer versions of torch, or schedulers, have put beside an optimizer's own."""
_OPTIONS = frozenset(
    {
        *("betas", "eps", "weight_decay", "amsgrad", "momentum", "dampening", "nesterov", "alpha"),
        *("momentum_decay", "lr_decay", "initial_accumulator_value", "rho", "etas", "step_sizes", "lambd"),
        *("t0", "centered", "beta2_decay", "d", "ns_steps", "ns_coefficients", "adjust_lr_fn", "max_iter"),
    }
)
"""Options of torch's own optimizers."""


def unlike(
    saved: Mapping[str, Any], saved_state: Collection[str], own: Mapping[str, Any], name: str
) -> str | None:
    """The kind of another optimizer than `name`, the class of `own`, that options and state keys are of.

    `saved`, `own`: the options of a parameter group; `saved_state`: the keys of a parameter's state. None
    when they are of the same kind, as far as the keys show it.
    """
    was, now = _base(optimizer_kind(saved, ())), _base(optimizer_kind(own, ()))
    shown = optimizer_kind(saved, saved_state)
    if {was, now} in ({"Adam or AdamW", "Adam"}, {"Adam or AdamW", "AdamW"}):
        was = now
    if was != now and not {was, now} & _VAGUE:
        return shown
    if not _fits(name if name in _STATES else now, saved_state):
        return shown
    lacking = own.keys() - saved.keys() - _LATE
    strange = (saved.keys() - own.keys() - _LATE) & _OPTIONS
    is_other = bool(lacking and strange) if was == now else bool(lacking or strange)
    return shown if is_other else None


def unlike_itself(options: Mapping[str, Any], state_keys: Collection[str]) -> str | None:
    """The kind that a parameter's state is of, where its group's options are another optimizer's."""
    if _fits(_base(optimizer_kind(options, ())), state_keys):
        return None
    return optimizer_kind({}, state_keys)


def _fits(kind: str, state_keys: Collection[str]) -> bool:
    """Whether an optimizer of that kind may have kept `state_keys`."""
    kept = set(state_keys) - {"step"}
    return not kept or _STATES.get(kind, frozenset()) <= kept


def _base(kind: str) -> str:
    return kind.partition(" with ")[0]


_SCHEDULERS: tuple[tuple[str, frozenset[str]], ...] = tuple(
    (kind, frozenset(keys.split()))
    for kind, keys in (
        ("ReduceLROnPlateau", "patience num_bad_epochs"),
        ("OneCycleLR", "total_steps cycle_momentum"),
        ("CyclicLR", "step_ratio max_lrs"),
        ("CosineAnnealingWarmRestarts", "T_i T_mult"),
        ("CosineAnnealingLR", "T_max eta_min"),
        ("SequentialLR", "_schedulers _milestones"),
        ("ChainedScheduler", "_schedulers"),
        ("MultiStepLR", "milestones gamma"),
        ("StepLR", "step_size gamma"),
        ("LinearLR", "start_factor end_factor"),
        ("ConstantLR", "factor total_iters"),
        ("PolynomialLR", "power total_iters"),
        ("SWALR", "anneal_epochs"),
        ("LambdaLR", "lr_lambdas"),
        ("ExponentialLR", "gamma base_lrs"),
    )
)


def scheduler_kind(state: Mapping[Any, Any]) -> str:
    """The class of the scheduler with the state dict `state` (`LambdaLR` may be MultiplicativeLR)."""
    return next((kind for kind, keys in _SCHEDULERS if keys <= state.keys()), "unknown")
