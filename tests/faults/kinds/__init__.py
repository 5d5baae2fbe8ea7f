"""The faults: what each kind does, and which of the promises holds under it."""
