"""What limits each budget that was missed, by row: the README's table says it beside the number."""

LIMITS: dict[str, str] = {}
