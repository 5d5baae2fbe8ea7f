"""The storm's policies and keys, and the locks that belong to them."""

POLICIES = ("join", "running", "rerun", "wait", "skip", "early")


def keys_of(policy, count):
    return [f"{policy}-{number}" for number in range(count)]


def policy_of(key):
    return key.rpartition("-")[0]


def lock_of(key):
    return f"flight:storm-{policy_of(key)}:{key}"
