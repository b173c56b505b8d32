"""Programs for deployment: made by torch's own exporters, run in their runtimes, compared with the model."""
