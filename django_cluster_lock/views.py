"""Locks around a view: the request's transactions check their fences, and HTTP answers for what they raise."""

import logging
import sys
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from traceback import walk_tb
from types import TracebackType
from typing import Any, NamedTuple, Self, TypeAlias, cast

from asgiref.sync import iscoroutinefunction, markcoroutinefunction
from django.db import router, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.http import HttpRequest, HttpResponse, JsonResponse
from django.http.response import HttpResponseBase
from django.utils.translation import gettext_lazy as _

from django_cluster_lock import fences, fencing, transactions
from django_cluster_lock.errors import LockBusy, LockError, LockLost, LockUnavailable, StaleFence
from django_cluster_lock.fencing import Fencing

Respond: TypeAlias = Callable[[Any, LockError], HttpResponseBase]
_LOCKS = "_cluster_locks"
logger = logging.getLogger("django_cluster_lock")


class Answer(NamedTuple):
    """An answer to a request; ``retry_after`` in whole seconds, None where repeating it would be wrong."""

    status: int
    retry_after: int | None
    code: str
    text: object  # a lazy translation


# The texts leave out the lock's name and holder, which are no business of a client's. When a lock comes free is known
# to nobody, since its holder renews it: a second is what a request takes. A failover takes some.
BUSY = Answer(409, 1, "lock_busy", _("Another request is working on this. Try again in a moment."))
UNAVAILABLE = Answer(503, 5, "lock_unavailable", _("This cannot be done safely right now. Try again in a moment."))
LOST = Answer(409, None, "lock_lost", _("Another request may have changed this meanwhile. Check before you repeat it."))
_HOOKS = BaseDatabaseWrapper.run_and_clear_commit_hooks.__code__
_ANSWERS = ((LockBusy, BUSY), (LockUnavailable, UNAVAILABLE), (LockLost, LOST), (StaleFence, LOST))


class ClusterLockMiddleware:
    """Answers requests whose view let a lock's exception through."""

    sync_capable = True
    async_capable = True

    def __init__(self, get_response: Callable[[HttpRequest], Any]) -> None:
        self.get_response = get_response
        if iscoroutinefunction(get_response):
            markcoroutinefunction(self)

    def __call__(self, request: HttpRequest) -> Any:
        return self.get_response(request)

    def process_exception(self, request: HttpRequest, exception: Exception) -> HttpResponseBase | None:
        """Django calls it after the request's transaction was rolled back."""
        found = answer_to(exception)
        return response_of(request, found) if found else None


class Answering:
    """Turns what a lock raises during a view call into its response."""

    def __init__(self, request: object, respond: Respond | None) -> None:
        self.request = request
        self.respond = respond
        self.response: Any = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> bool:
        found = answer_to(error)
        if not found:
            return False
        assert isinstance(error, LockError)
        if found is UNAVAILABLE and self.response is not None:
            return True  # the view had finished, and repeating it for a failed release would do its work twice
        transactions.roll_back_request()
        if self.respond:
            self.response = self.respond(self.request, error)
        elif _is_rest_framework(self.request):
            raise _for_rest_framework(found) from error
        else:
            self.response = response_of(self.request, found)
        return True


def locks_around(request: HttpRequest, lock: Fencing) -> list[Fencing]:
    """The locks of a view's decorators, of which this one is the innermost so far."""
    outer: list[Fencing] = getattr(request, _LOCKS, [])
    locks = [*(each for each in outer if each._find()), lock]  # noqa: SLF001
    setattr(request, _LOCKS, locks)
    return locks


def begin_transaction(locks: Sequence[Fencing], using: str) -> AbstractContextManager[None]:
    """A request's transaction on a database, which checks the fences of the locks around it.

    Where the app of fences is not installed, or its table has no place in the database, it is one without fences.
    """
    if fences.installed():
        from django_cluster_lock.fences.models import Fence

        if router.allow_migrate_model(using, Fence):
            return fencing.atomic(locks, using)
    return transaction.atomic(using=using)


def request_of(args: tuple[object, ...]) -> object | None:
    """The request, as the function gets it, of a call that is a view's; None if it is none."""
    return next((argument for argument in args[:2] if _http_request(argument)), None)


def http_request(request: object) -> HttpRequest:
    """Django's request, which REST framework's wraps."""
    found = _http_request(request)
    assert found
    return found


def answer_to(error: BaseException | None) -> Answer | None:
    """The answer an exception deserves, None if that is not for this module to say.

    What a hook of a commit raises is not: the work is done, and must not be repeated.
    """
    for kind, answer in _ANSWERS:
        if isinstance(error, kind) and not _is_from_hook(error):
            logger.warning("lock.request_refused", extra={"lock": error.name, "reason": str(error)})
            return answer
    return None


def response_of(request: object, answer: Answer) -> HttpResponse:
    """The response, in JSON to those who prefer it to plain text."""
    preferred = http_request(request).get_preferred_type(["text/plain", "application/json"])
    response: HttpResponse
    if preferred == "application/json":
        response = JsonResponse({"detail": str(answer.text), "code": answer.code}, status=answer.status)
    else:
        response = HttpResponse(str(answer.text), status=answer.status, content_type="text/plain; charset=utf-8")
    if answer.retry_after is not None:
        response.headers["Retry-After"] = str(answer.retry_after)
    return response


def _is_from_hook(error: BaseException) -> bool:
    return any(frame.f_code is _HOOKS for frame, _ in walk_tb(error.__traceback__))


def _http_request(argument: object) -> HttpRequest | None:
    # Not by isinstance and getattr, which would evaluate a lazy object such as request.user.
    if issubclass(type(argument), HttpRequest):
        return cast(HttpRequest, argument)
    attributes: dict[str, object] = getattr(argument, "__dict__", {})
    wrapped = attributes.get("_request")
    return wrapped if isinstance(wrapped, HttpRequest) else None


def _is_rest_framework(request: object) -> bool:
    module = sys.modules.get("rest_framework.request")
    return module is not None and isinstance(request, module.Request)


def _for_rest_framework(answer: Answer) -> Exception:
    """What makes REST framework answer in its own way: renderers, EXCEPTION_HANDLER, rollback."""
    from rest_framework.exceptions import APIException

    exception: Exception = APIException(answer.text, answer.code)
    exception.status_code = answer.status  # type: ignore[attr-defined]
    exception.wait = answer.retry_after  # type: ignore[attr-defined]
    return exception
