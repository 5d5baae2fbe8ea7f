"""Texts that others have written, made safe for logs and terminals: names, holders, what servers answer."""

import logging


def escaped(text: str) -> str:
    """Return the text with what is not printable, control characters above all, written as Python writes it."""
    if text.isprintable():
        return text
    return "".join(char if char.isprintable() else repr(char)[1:-1] for char in text)


class EscapeRecords(logging.Filter):
    """Escapes the arguments and extra fields of log records, so that no lock's name can forge a line."""

    def filter(self, record: logging.LogRecord) -> bool:
        """Let every record through."""
        if isinstance(record.args, tuple):
            record.args = tuple(map(_escaped_if_text, record.args))
        for field, value in vars(record).items():
            if field not in _OWN_FIELDS and isinstance(value, str) and not value.isprintable():
                setattr(record, field, escaped(value))
        return True


def _escaped_if_text(value: object) -> object:
    return escaped(value) if isinstance(value, str) else value


# What logging itself puts into a record: a traceback has its lines.
_OWN_FIELDS = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime"}
logging.getLogger("django_cluster_lock").addFilter(EscapeRecords())
