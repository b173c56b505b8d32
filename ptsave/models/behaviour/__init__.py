"""What a model does: traced, kept in the record, replayed and judged."""
