"""`python -m tools.check`: tries a configuration in a minute, before a run that takes hours."""
