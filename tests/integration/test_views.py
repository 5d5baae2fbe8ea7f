"""`cache_lock` on views of every kind, and the middleware: what a client is answered."""

import asyncio
import threading
from types import ModuleType

import pytest
from asgiref.sync import iscoroutinefunction
from django.http import HttpRequest, HttpResponse
from django.test import AsyncClient, AsyncRequestFactory, Client, RequestFactory
from django.urls import path
from django.utils.decorators import method_decorator
from django.utils.functional import SimpleLazyObject
from django.views import View
from django.views.decorators.csrf import csrf_exempt
from rest_framework.decorators import api_view
from rest_framework.response import Response
from rest_framework.views import APIView

from django_cluster_lock import (
    LockBusy,
    LockLost,
    LockNotHeld,
    LockNotReplicated,
    LockTimeout,
    LockUnavailable,
    StaleFence,
    cache_lock,
    current_lock,
)
from django_cluster_lock.views import ClusterLockMiddleware, request_of

MIDDLEWARE = "django_cluster_lock.views.ClusterLockMiddleware"


@pytest.fixture(autouse=True)
def locks_on(settings, cluster, prefix):
    settings.CLUSTER_LOCKS = {
        "default": {"LOCATION": cluster.urls, "KEY_PREFIX": prefix, "TIMEOUT": 10, "BLOCKING_TIMEOUT": 20}
    }


@pytest.fixture
def mount(settings):
    """Make a view answer at /<sku>/."""

    def mount(view):
        settings.ROOT_URLCONF = ModuleType("urls")
        settings.ROOT_URLCONF.urlpatterns = [path("<slug:sku>/", view)]

    return mount


def answer():
    return HttpResponse(f"holding {current_lock().name}: {current_lock().owned()}")


async def aanswer():
    return HttpResponse(f"holding {current_lock().name}: {await current_lock().aowned()}")


guard = cache_lock("stock:{sku}")


@guard
def function(request, sku):
    return answer()


@guard
async def async_function(request, sku):
    return await aanswer()


@method_decorator(guard, name="dispatch")
class ClassBased(View):
    def get(self, request, sku):
        return answer()


@method_decorator(guard, name="dispatch")
class AsyncClassBased(View):
    async def get(self, request, sku):
        return await aanswer()


class OwnDispatch(View):
    @guard
    def dispatch(self, request, *args, **kwargs):
        return super().dispatch(request, *args, **kwargs)

    async def get(self, request, sku):
        return await aanswer()


class OneMethod(View):
    @guard
    def get(self, request, sku):
        return answer()


class OneAsyncMethod(View):
    @guard
    async def get(self, request, sku):
        return await aanswer()


class MethodDecorated(View):
    @method_decorator(guard)
    def get(self, request, sku):
        return answer()


class AsyncMethodDecorated(View):
    @method_decorator(guard)
    async def get(self, request, sku):
        return await aanswer()


@method_decorator([cache_lock("outer:{sku}"), csrf_exempt, guard], name="dispatch")
class TwoLocks(View):
    async def get(self, request, sku):
        return await aanswer()


@method_decorator(guard, name="dispatch")
class RestDispatch(APIView):
    def get(self, request, sku):
        return answer()


class RestMethod(APIView):
    @guard
    def get(self, request, sku):
        return answer()


@api_view()
@guard
def rest_function(request, sku):
    return answer()


@guard
@api_view()
def guarded_rest_function(request, sku):
    return answer()


VIEWS = {
    "function": function,
    "async function": async_function,
    "class": ClassBased.as_view(),
    "async class": AsyncClassBased.as_view(),
    "own dispatch": OwnDispatch.as_view(),
    "as_view": guard(type("Plain", (View,), {"get": lambda self, request, sku: answer()}).as_view()),
    "one method": OneMethod.as_view(),
    "one async method": OneAsyncMethod.as_view(),
    "method_decorator": MethodDecorated.as_view(),
    "async method_decorator": AsyncMethodDecorated.as_view(),
    "two locks": TwoLocks.as_view(),
    "REST dispatch": RestDispatch.as_view(),
    "REST method": RestMethod.as_view(),
    "REST function": rest_function,
    "REST function outside": guarded_rest_function,
}
each_view = pytest.mark.parametrize("view", VIEWS.values(), ids=VIEWS.keys())


@each_view
@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_a_view_holds_the_lock_that_its_url_names(mount, view, client):
    mount(view)
    if client is AsyncClient:
        response = await client().get("/A/")
    else:
        response = await asyncio.to_thread(client().get, "/A/")
    assert (response.status_code, response.content) == (200, b"holding stock:A: True")
    assert not await cache_lock("stock:A").alocked()


@each_view
@pytest.mark.parametrize("client", [Client, AsyncClient])
async def test_a_busy_lock_is_answered_at_once(mount, view, client):
    mount(view)
    async with cache_lock("stock:A"):
        if client is AsyncClient:
            response = await client().get("/A/")
        else:
            response = await asyncio.to_thread(client().get, "/A/")
    assert response.status_code == 409
    assert response.headers["Retry-After"] == "1"
    assert b"stock:A" not in response.content


def test_asynchronous_views_stay_asynchronous():
    assert [name for name, view in VIEWS.items() if iscoroutinefunction(view)] == [
        "async function",
        "async class",
        "own dispatch",
        "one async method",
        "async method_decorator",
        "two locks",
    ]


def test_a_view_called_without_a_handler():
    assert ClassBased.as_view()(RequestFactory().get("/"), sku="A").content == b"holding stock:A: True"


async def test_an_async_view_called_without_a_handler():
    response = await AsyncClassBased.as_view()(AsyncRequestFactory().get("/"), sku="A")
    assert response.content == b"holding stock:A: True"


@pytest.mark.parametrize(
    "options", [{"blocking": True}, {"blocking_timeout": 30}, {"blocking": True, "blocking_timeout": None}]
)
def test_a_view_waits_if_it_is_told_to(mount, cluster, prefix, options):
    mount(cache_lock("stock:{sku}", **options)(function.__wrapped__))
    responses = []
    with cache_lock("stock:A"):
        thread = threading.Thread(target=lambda: responses.append(Client().get("/A/")))
        thread.start()
        while not any(field.startswith("w") for field in cluster.admin().hkeys(f"{prefix}:lock:{{stock:A}}")):
            assert thread.is_alive()
    thread.join()
    assert [response.status_code for response in responses] == [200]


def failing(error, **options):
    @cache_lock("mine", **options)
    def view(request, sku):
        raise error

    return view


CASES = [  # the exception, and its answer: status, Retry-After, code
    (LockBusy("a"), 409, "1", "lock_busy"),
    (LockTimeout("a"), 409, "1", "lock_busy"),
    (LockUnavailable("a"), 503, "5", "lock_unavailable"),
    (LockNotReplicated("a"), 503, "5", "lock_unavailable"),
    (LockLost("a"), 409, None, "lock_lost"),
    (StaleFence("a"), 409, None, "lock_lost"),
]
each_case = pytest.mark.parametrize("case", CASES, ids=[type(case[0]).__name__ for case in CASES])


def answered():
    response = Client().get("/A/", headers={"accept": "application/json"})
    return response.status_code, response.headers.get("Retry-After"), response.json()["code"]


@each_case
def test_what_each_exception_is_answered(mount, case):
    error, *expected = case
    mount(failing(error))
    assert answered() == tuple(expected)


@each_case
def test_the_middleware_answers_the_same(mount, settings, case):
    error, *expected = case
    settings.MIDDLEWARE = [MIDDLEWARE]

    def view(request, sku):
        raise error

    mount(view)
    assert answered() == tuple(expected)


async def test_the_middleware_in_an_async_stack(mount, settings):
    settings.MIDDLEWARE = [MIDDLEWARE]

    async def view(request, sku):
        async with cache_lock("a", blocking=False):
            pytest.fail("it is held")

    mount(view)
    async with cache_lock("a"):
        response = await AsyncClient().get("/A/")
    assert response.status_code == 409
    assert iscoroutinefunction(ClusterLockMiddleware(async_function))
    assert not iscoroutinefunction(ClusterLockMiddleware(function))


@pytest.mark.parametrize("error", [ValueError("no lock's"), LockNotHeld("a")])
@pytest.mark.parametrize("middleware", [[], [MIDDLEWARE]])
def test_other_exceptions_pass(mount, settings, error, middleware):
    settings.MIDDLEWARE = middleware
    mount(failing(error))
    with pytest.raises(type(error)):
        Client().get("/A/")


@pytest.mark.parametrize(
    ("accept", "kind"),
    [
        ("application/json", "application/json"),
        ("application/json, text/plain, */*", "application/json"),
        ("*/*", "text/plain; charset=utf-8"),
        ("text/html,application/xhtml+xml,*/*;q=0.8", "text/plain; charset=utf-8"),
        ("image/png", "text/plain; charset=utf-8"),
    ],
)
def test_plain_text_unless_the_client_prefers_json(mount, accept, kind):
    mount(failing(LockBusy("a")))
    assert Client().get("/A/", headers={"accept": accept}).headers["Content-Type"] == kind


def test_a_response_of_ones_own(mount):
    seen = []

    def respond(request, error):
        seen.append((request, error))
        return HttpResponse("come back", status=423)

    error = LockBusy("a")
    mount(failing(error, response=respond))
    response = Client().get("/A/")
    assert (response.status_code, response.content) == (423, b"come back")
    assert seen == [(response.wsgi_request, error)]


@pytest.mark.parametrize("name", ["REST method", "REST function"])
def test_rest_framework_renders_the_answer(mount, settings, name):
    handled = []

    def handler(error, context):
        handled.append(error)
        return Response({"problem": error.detail.code}, status=error.status_code)

    mount(VIEWS[name])
    with cache_lock("stock:A"):
        response = Client().get("/A/", headers={"accept": "application/json"})
        assert response.json() == {"detail": "Another request is working on this. Try again in a moment."}
        settings.REST_FRAMEWORK = {"EXCEPTION_HANDLER": handler}
        response = Client().get("/A/")
    assert (response.status_code, response.json()) == (409, {"problem": "lock_busy"})
    assert isinstance(handled[0].__cause__, LockBusy)


def test_a_view_that_finished_is_not_repeated_because_its_release_failed(mount, monkeypatch):
    def view(request, sku):
        monkeypatch.setattr(type(current_lock()), "_releasing", unreachable)
        return HttpResponse("done")

    def unreachable(self):
        raise LockUnavailable(self.name)
        yield

    mount(cache_lock("a")(view))
    response = Client().get("/A/")
    assert (response.status_code, response.content) == (200, b"done")


def test_a_lease_lost_during_the_view_is_told(mount, cluster, prefix):
    def view(request, sku):
        cluster.admin().delete(f"{prefix}:lock:{{a}}")
        return HttpResponse("done")

    mount(cache_lock("a")(view))
    response = Client().get("/A/")
    assert (response.status_code, "Retry-After" in response.headers) == (409, False)


def test_helpers_with_a_request_are_view_calls():
    @cache_lock("a")
    def helper(place, request):
        return HttpResponse()

    with cache_lock("a"):
        assert helper("here", HttpRequest()).status_code == 409


def test_lazy_arguments_are_not_evaluated():
    def evaluate():
        pytest.fail("it may be a query")

    assert request_of((SimpleLazyObject(evaluate), 7)) is None
