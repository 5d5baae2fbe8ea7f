"""One of the shop's web processes: ``python -m demo.web SOCKET``."""

from django.contrib.staticfiles.handlers import StaticFilesHandler
from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler

from demo.serving import inherited_socket, serve


class Handler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name it has in the base class
        pass


class Server(ThreadedWSGIServer):
    def server_bind(self) -> None:
        self.socket.close()
        self.socket = inherited_socket()
        self.server_name, self.server_port = self.server_address = self.socket.getsockname()
        self.setup_environ()

    def server_activate(self) -> None:
        """It listens already."""


if __name__ == "__main__":
    from ticketshop.wsgi import application

    server = Server(("", 0), Handler)
    server.set_app(StaticFilesHandler(application))
    serve(server)
