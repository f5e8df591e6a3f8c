"""What a command hands to the Trainer: its options, callbacks and loggers, and the checks of all three."""
