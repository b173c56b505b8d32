"""Side by side measurements: `scripts/bench` runs them."""
