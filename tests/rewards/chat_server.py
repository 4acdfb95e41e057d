"""A server on loopback that answers as a judge's endpoint would."""

import json
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


def verdict(score):
    return json.dumps({"reason": "because", "score": score})


def in_order(*answers):
    """What the server answers to its first request, its second and so on."""
    return lambda body, number: answers[number - 1]


class ChatServer:
    """A real server on loopback. `answer(body, number)` gives a reply's text, or a status with body and headers."""

    def __init__(self):
        self.bodies, self.keys, self.paths = [], [], []
        self.answer = lambda body, number: verdict(0.5)
        self.lock, self.released = threading.Lock(), threading.Event()
        self.in_flight = self.most_in_flight = 0
        endpoint = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
                with endpoint.lock:
                    endpoint.bodies.append(body)
                    endpoint.keys.append(self.headers.get("Authorization"))
                    endpoint.paths.append(self.path)
                    number = len(endpoint.bodies)
                    endpoint.in_flight += 1
                    endpoint.most_in_flight = max(endpoint.most_in_flight, endpoint.in_flight)
                answer = endpoint.answer(body, number)
                status, text, headers = (200, answer, {}) if isinstance(answer, str) else answer
                if status == 200 and not headers.get("raw"):
                    message = {"choices": [{"message": {"role": "assistant", "content": text}}]}
                    text = json.dumps({**message, "usage": {"prompt_tokens": 10, "completion_tokens": 3}})
                with endpoint.lock:
                    endpoint.in_flight -= 1  # before the client can know, or its next request would count as one more
                try:
                    self.send_response(status)
                    for name, value in headers.items():
                        self.send_header(name, value)
                    self.end_headers()
                    for character in " " * 100 if headers.get("drip") else "":
                        self.wfile.write(character.encode())
                        self.wfile.flush()
                        if endpoint.released.wait(0.05):
                            break
                    self.wfile.write(text.encode())
                except OSError:  # a client that gave up
                    pass

            def log_message(self, *args):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_port}/v1"
        threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()

    def close(self):
        self.released.set()
        self.server.shutdown()
        self.server.server_close()
