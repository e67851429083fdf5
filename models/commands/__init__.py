"""The commands of `nnfs`, one file each: `add(commands)` declares its arguments and its `run`."""
