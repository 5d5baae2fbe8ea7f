"""What the types of `cache_lock` promise. Never run: mypy reads it."""

from collections.abc import Awaitable, Callable
from typing import assert_type

from django.http import HttpRequest, HttpResponse, JsonResponse
from django.utils.decorators import method_decorator
from django.views import View

from django_cluster_lock import Lock, LockError, cache_lock, current_lock


@cache_lock("stock:{sku}")
def take(sku: str, *, count: int = 1) -> int:
    return count


@cache_lock(["a", "b"], timeout=5, blocking_timeout=None, max_hold=60, tag="order:7", release_on="exit")
async def atake(sku: str) -> bytes:
    return sku.encode()


def respond(request: HttpRequest, error: LockError) -> HttpResponse:
    return JsonResponse({"lock": error.name}, status=423)


@cache_lock("stock:{sku}", response=respond)
def view(request: HttpRequest, sku: str) -> HttpResponse:
    return HttpResponse(sku)


@method_decorator(cache_lock("stock:{sku}"), name="dispatch")
class Page(View):
    @cache_lock("stock:{sku}")
    def get(self, request: HttpRequest, sku: str) -> HttpResponse:
        return HttpResponse(sku)

    @classmethod
    @cache_lock("page")
    def create(cls) -> str:
        return cls.__name__

    @cache_lock("page")
    @staticmethod
    def static(size: int) -> int:
        return size


@cache_lock(lambda request, pk: f"stock:{int(pk)}", timeout=5)
def named_view(request: HttpRequest, pk: str) -> HttpResponse:
    return HttpResponse(pk)


def names_of(source: int, target: int) -> list[str]:
    return [f"account:{source}", f"account:{target}"]


@cache_lock(names_of)
async def transfer(source: int, target: int, amount: int) -> int:
    return amount


def use() -> None:
    assert_type(named_view(HttpRequest(), "7"), HttpResponse)
    named_view("7")  # type: ignore[call-arg, arg-type]
    transferred: Awaitable[int] = transfer(1, 2, amount=3)
    assert_type(take("A", count=2), int)
    take(7)  # type: ignore[arg-type]
    take("A", size=2)  # type: ignore[call-arg]
    awaitable: Awaitable[bytes] = atake("A")
    viewed: Callable[[HttpRequest, str], HttpResponse] = view
    assert_type(Page().get(HttpRequest(), sku="A"), HttpResponse)
    Page().get(HttpRequest())  # type: ignore[call-arg]
    assert_type(Page.create(), str)
    assert_type(Page.static(7), int)
    del awaitable, viewed, transferred


def hold() -> None:
    with cache_lock("stock:{sku}", values={"sku": 7}) as lock:
        assert_type(lock.fence, int)
        held: Lock = lock
        assert_type(held.acquire(blocking=False), bool)
        with lock.atomic(), lock.atomic(using="other"):
            lock.guarded_set("{a}:b", 7, timeout=60)
            lock.guarded("return 1", ["{a}:b"], [b"x", 1.5])
        lock.atomic(savepoint=False)  # type: ignore[call-arg]
        lock.guarded_set("{a}:b", None)  # type: ignore[arg-type]
    assert_type(current_lock(), Lock | None)
    cache_lock("a", sleep=0.1, thread_local=False)
    cache_lock("a", tiemout=5)  # type: ignore[call-arg]
    cache_lock("a", release_on="never")  # type: ignore[arg-type]
    cache_lock(7)  # type: ignore[arg-type]
    cache_lock(lambda pk: 7)  # type: ignore[arg-type, return-value]


async def ahold() -> None:
    async with cache_lock("a") as lock:
        assert_type(await lock.aextend(5), bool)
        await lock.aguarded_set(b"{a}:b", "x")
