"""What the tasks and the storm wrote down."""

import json
from pathlib import Path


class Log:
    """The events, in the order in which they happened."""

    def __init__(self, path):
        self.path, self.place, self.events = Path(path), 0, []

    def read(self):
        with self.path.open() as file:
            file.seek(self.place)
            while (line := file.readline()).endswith("\n"):
                self.place += len(line.encode())
                self.events.append(json.loads(line))
        return self.events

    def running(self):
        """The starts of runs that have not ended."""
        under_way = {}
        for event in self.read()[-2000:]:
            if event["what"] == "start":
                under_way[event["pid"]] = event
            elif event["what"] == "end":
                under_way.pop(event["pid"], None)
            elif event["what"] == "killed":
                for pid in event["pids"]:
                    under_way.pop(pid, None)
        return list(under_way.values())
