"""The HTTP server of tests."""

import http.server
import sys


class Server(http.server.ThreadingHTTPServer):
    """One to which it is no error that a client leaves before it has read everything.

    Clients do so when they have seen enough, as the header of an answer that is not what
    they want, or when a test ends them. Python's server would print a trace.
    """

    daemon_threads = True

    def handle_error(self, request, client_address):
        if not isinstance(sys.exception(), ConnectionError):
            super().handle_error(request, client_address)
