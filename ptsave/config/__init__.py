"""What the user writes: TOML as frozen dataclasses."""
