"""A lock must not come free before the transaction that wrote under it has ended."""
