"""The command line: `truesparse train`, `doctor`, `algorithms`."""
