"""The lock's scripts in Python, for records of the world; `test_twin` compares them with the real ones.

Each takes a record and the script's arguments, and gives the answer and the record after it.
"""

from tests.model.world import LEASE, MARK, Record, next_fence

NEW = Record(None, -1, 0)


def acquire(data, token, mark):
    if data and any(marked == token for marked, _ in data.marks):
        return (b"over",), data
    held = data is not None and data.token is not None and data.left > 0
    if held and data.token != token:
        return (b"busy", 0), data
    if held:
        return (b"own", data.fence), data._replace(left=max(data.left, LEASE))
    fence = next_fence(data.fence if data else None)
    return (b"own", fence), Record(token, fence, LEASE, data.marks if data else ())


def renew(data, token, mark):
    if data is None or data.token != token or data.left <= 0:
        return (b"lost",), data
    return (b"ok", data.fence), data._replace(left=max(data.left, LEASE))


def attach(data, token, old):
    if data and any(marked == token for marked, _ in data.marks):
        return (b"over",), data
    if data is None or data.token not in (token, old) or data.left <= 0:
        return (b"lost",), data
    if data.token == token:
        return (b"own", data.fence), data._replace(left=max(data.left, LEASE))
    fence = next_fence(data.fence)
    return (b"own", fence), Record(token, fence, LEASE, data.marks)


def release(data, token, mark):
    mine = data is not None and data.token == token
    answer = b"released" if mine and data.left > 0 else b"not owner"
    if mine:
        data = data._replace(token=None, left=0)
    if mark:
        others = tuple(entry for entry in (data.marks if data else ()) if entry[0] != token)
        data = (data or NEW)._replace(marks=tuple(sorted((*others, (token, MARK)))))
    return (answer,), data


SCRIPTS = {"acquire": acquire, "attach": attach, "renew": renew, "release": release}
